"""The kernels for AArch64 without one: cross-compiled, run by qemu, and compared with this machine's.

What is compiled is what CMakeLists.txt lists for AArch64, with its flags, in tests/cpp/cpu_kernels.cpp.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from kernel_requests import KINDS, LAWS, fill_request, fills, known_answers, measured, readings
from same_bits import bits
from selection import cases

from benchmarks import asm
from fastinit.backends import choose as backends
from fastinit.fills.operator import Window, fill_
from fastinit.stream import laws
from fastinit.stream.laws import Law
from fastinit.stream.reference_moments import ALL_FIELDS, FIELDS

ROOT = Path(__file__).resolve().parents[2]
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
# Each on a CPU that has no more than what it is for.
ISAS = {"neon_sha3": "max,sve=off", "neon": "cortex-a72"}


MISSING = (
    asm.missing()
    or ("" if QEMU else "needs qemu-aarch64 (Debian's qemu-user)")
    or ("" if backends.native.module else "needs the native module, whose values are compared")
)
pytestmark = [pytest.mark.compiler, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def called(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the build, with `program`."""
    return asm.cross_build(tmp_path_factory.mktemp("neon"))


def run(program: Path, isa: str, what: str, given: bytes, data: bytes = b"") -> bytes:
    at = program.parent
    (at / "in").write_bytes(given)
    (at / "in.data").write_bytes(data)
    called(str(QEMU), "-cpu", ISAS[isa], program, at / "in", at / "out", isa, what)
    return (at / "out").read_bytes()


def assert_same(got: bytes, expected: bytes) -> None:
    assert len(got) == len(expected)
    assert got == expected  # without pytest's account of two long byte strings


SOME = (
    laws.uniform(-0.1, 0.3),
    laws.normal(-1.5, 0.02),
    laws.truncated_normal(0.0, 0.02, -2.0, 2.0),  # the whole tail
    laws.uniform(),
    laws.normal(),
    laws.truncated_normal(a=3.0, b=9.0),
)


def million(law: Law, dtype: torch.dtype, number: int) -> tuple[bytes, bytes]:
    """A request for 10^6 values across a carry of the counter, and these values of this machine."""
    tensor = torch.empty(1_000_000, dtype=dtype)
    window, seed = (
        Window((1,), (1 << 34) - 500_003 - number),
        0x9E37_79B9_7F4A_7C15 * number % 2**64,
    )
    given = fill_request(tensor, tensor, law, seed, number, window)
    with backends.backend("native"):
        fill_(tensor, law, seed=seed, stream=number, window=window)
    return given, bits(tensor).numpy().tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_known_answers(built: Path, isa: str) -> None:
    given, expected = zip(*known_answers())
    assert len(given) == 500
    assert_same(run(built / "program", isa, "fill", b"".join(given)), b"".join(expected))


@pytest.mark.parametrize("isa", cases(ISAS, {"neon_sha3"}))
@pytest.mark.parametrize("dtype", laws.WRITTEN)
def test_a_million_values_of_each_law(built: Path, dtype: torch.dtype, isa: str) -> None:
    first = laws.WRITTEN.index(dtype) % 2 * 3
    given, expected = zip(
        *(million(law, dtype, i) for i, law in enumerate(SOME[first : first + 3]))
    )
    assert_same(run(built / "program", isa, "fill", b"".join(given)), b"".join(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), pytest.param(laws.WRITTEN, marks=pytest.mark.slow)]
)
def test_every_window(built: Path, isa: str, dtypes: tuple[torch.dtype, ...]) -> None:
    work = fills(tuple(KINDS), LAWS, dtypes)
    assert_same(run(built / "program", isa, "fill", work.given), work.expected)


@pytest.mark.parametrize(("what", "fields"), [("moments", FIELDS), ("higher", ALL_FIELDS)])
def test_moments_have_the_bits_of_other_cpus(built: Path, what: str, fields: int) -> None:
    work, asked = readings(laws.DTYPES, large=True)
    got = run(built / "program", "neon", what, work.given, work.data)
    assert_same(got, measured(asked, fields))


def test_without_sha3_it_is_not_chosen(built: Path) -> None:
    names = {}
    for cpu in (*ISAS.values(), "neoverse-n1", "a64fx"):  # Graviton 2's; SVE without SHA3
        command = [str(QEMU), "-cpu", cpu, str(built / "program")]
        names[cpu] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert names.pop(ISAS["neon_sha3"]) == "neon_sha3\nneon\n"
    assert set(names.values()) == {"neon\n"}


# --- instructions ----------------------------------------------------------------------------------

ASKED = {"uniform": 8, "normal": 13, "truncated_normal": 20}  # for each value


@pytest.fixture(scope="module")
def lines(built: Path) -> list[asm.Line]:
    return list(asm.ledger(built))


def test_no_loop_takes_more_than_before(lines: list[asm.Line]) -> None:
    wanted = {(name, law) for name in ISAS for law in (*asm.LAWS, "moments")}
    assert {(line.build, line.law) for line in lines if line.dtype == "float32"} == wanted
    if unknown := asm.strangers(lines):
        pytest.skip(
            f"the ledger has no lines of {unknown}: python -m benchmarks.asm --save adds them"
        )
    assert not asm.risen(lines)


def test_no_loop_takes_more_than_was_asked(lines: list[asm.Line]) -> None:
    found = {line[1:4]: line.instructions for line in lines}
    for isa, (law, most) in product(ISAS, ASKED.items()):
        assert found[isa, law, "float32"] <= most, (isa, law)
    kept = [line for line in asm.recorded() if line.family == lines[0].family]
    avx2 = {line[2:4]: line.instructions for line in kept if line.build == "avx2"}
    for dtype in ("float64", "float32", "float16", "bfloat16"):  # registers are half as wide
        assert found["neon", "moments", dtype] <= 1.3 * 2 * avx2["moments", dtype], dtype


# --- mistakes ------------------------------------------------------------------------------------


NEON_TEXT = ("lanes_neon.h", "philox_neon.h")


class Mistake(NamedTuple):
    """A mistake in the text of NEON_TEXT, and the law, dtype and build that show it."""

    old: str
    new: str
    law: Law = SOME[0]
    dtype: torch.dtype = torch.float32
    isa: str = "neon_sha3"


UNIFORM, NORMAL, TRUNCATED = SOME[:3]
LARGE = laws.normal(0.0, 400.0)  # beyond what 8 bits hold
MISTAKES = {
    "a fused operation in two": Mistake(
        "return vfmaq_f32(c, a, b)", "return vaddq_f32(c, vmulq_f32(a, b))"
    ),
    "words in another order": Mistake("w[1] = low(p1)", "w[1] = low(p0)"),
    "blocks in another order": Mistake("{p, p + m}", "{p + m, p}"),
    "the products of another round": Mistake("low({q1.a, q0.a})", "low({p1.a, p0.a})"),
    "one factor for both": Mistake("{second<1>(a)", "{second<0>(a)"),
    "keys in another order": Mistake("{low, high, low, high}", "{high, low, high, low}"),
    "one key for both": Mistake("s.key1[round], s.key1[round]", "s.key0[round], s.key0[round]"),
    "a step of one block": Mistake("PHILOX_M0 * n", "PHILOX_M0 * (n / 2)"),
    "steps in another order": Mistake(
        "fmla %0.4s, %2.4s, %3.4s\\n\\tfmla %1.4s, %0.4s, %3.4s",
        "fmla %1.4s, %2.4s, %3.4s\\n\\tfmla %0.4s, %1.4s, %3.4s",
        NORMAL,
    ),
    "one coefficient for two": Mistake("%1.4s, %2.4s, %3.s[%7]", "%1.4s, %2.4s, %3.s[%6]", NORMAL),
    "a difference that wraps": Mistake("vqsubq_u32", "vsubq_u32", NORMAL),
    "the greater one": Mistake("vminq_s32", "vmaxq_s32", NORMAL),
    "other halves": Mistake("0xc0000000u", "0xbf800000u", NORMAL),
    "the sign of every bit": Mistake("word, 0x7fffffffu", "word, 0x3fffffffu", NORMAL),
    "the sign of every bit, without": Mistake(
        "vdupq_n_u32(0x7fffffffu)));", "vdupq_n_u32(0x3fffffffu)));", NORMAL, isa="neon"
    ),
    "an exclusive or of two": Mistake(
        "veorq_u32(a, veorq_u32(b, c))", "veorq_u32(a, vorrq_u32(b, c))", isa="neon"
    ),
    "the bits that are to go": Mistake("vdupq_n_u32(~c)", "vdupq_n_u32(c)", TRUNCATED, isa="neon"),
    "half a turn": Mistake(
        "vcvtq_n_f32_s32(vreinterpretq_s32_u32(a), N)",
        "vcvtq_n_f32_s32(vreinterpretq_s32_u32(a), N & 31 ? N : 31)",
        NORMAL,
    ),
    "a tail that all need": Mistake("vmaxvq_f32(a) > limit", "vminvq_f32(a) > limit", TRUNCATED),
    "a sign where there is none": Mistake("vcvtq_f32_u32(a)", "from_int(a)", SOME[5]),
    "halves rounded up": Mistake(
        "shl<15>(bits(v)), 31", "vdupq_n_u32(0x80000000u), 31", dtype=torch.bfloat16
    ),
    "odd before even": Mistake(
        "vsriq_n_u32(bfloat16(v[2 * i + 1]), bfloat16(v[2 * i]), 16)",
        "vsriq_n_u32(bfloat16(v[2 * i]), bfloat16(v[2 * i + 1]), 16)",
        dtype=torch.bfloat16,
    ),
    "odd before even, float16": Mistake(
        "vcvt_f16_f32(v[i])", "vcvt_f16_f32(v[i ^ 1])", dtype=torch.float16
    ),
    "the high half twice": Mistake(
        "vget_low_f32(v[i])", "vget_high_f32(v[i])", dtype=torch.float64
    ),
    "a float8 beyond the largest": Mistake(
        "vminq_u32(vbslq_u32(is_small, small, large), vdupq_n_u32(To::LARGEST))",
        "vbslq_u32(is_small, small, large)",
        LARGE,
        torch.float8_e4m3fn,
    ),
    "a zero with a sign": Mistake(
        "if (To::ONE_ZERO)", "if (false)", laws.normal(0.0, 1e-3), torch.float8_e5m2fnuz
    ),
}
# One in each part: words, polynomials, stores, what is there without SHA3.
ALWAYS = {
    "a fused operation in two",
    "a difference that wraps",
    "halves rounded up",
    "an exclusive or of two",
}
CPP = {torch.float32: "float", torch.float64: "double"}


def only(text: str, what: str, call: str) -> str:
    """The kernels' text for one law or one dtype: all of them take the compiler ten times as long."""
    start = text.index(f"switch (w.{what}) {{")
    end = text.index("\n  }\n", start) + len("\n  }\n")
    return f"{text[:start]}return {call}(w, t, tile);\n{text[end:]}"


def mistaken(built: Path, at: Path, mistake: Mistake) -> Path:
    """The program with the mistake in it: one object anew, as the build's command says."""
    shutil.copytree(ROOT / "csrc", at / "csrc")
    texts = {path: path.read_text() for path in (at / "csrc/cpu" / name for name in NEON_TEXT)}
    [(path, text)] = [item for item in texts.items() if mistake.old in item[1]]
    path.write_text(text.replace(mistake.old, mistake.new))
    cpp = CPP.get(mistake.dtype) or "".join(
        part.capitalize() for part in str(mistake.dtype).removeprefix("torch.").split("_")
    )
    law = next(name for name, code in laws.CODES.items() if code == mistake.law.kind).upper()
    fill = at / "csrc/cpu/fill.h"
    text = only(fill.read_text(), "law", f"fill_tile_as<T, {law}>")
    fill.write_text(only(text, "dtype", f"fill_tile_of<{cpp}>"))
    name = f"csrc/cpu/fill_{mistake.isa}.cpp"
    commands = json.loads((built / "compile_commands.json").read_text())
    [command] = [c["command"].split() for c in commands if c["file"].endswith(name)]
    command[command.index("-o") + 1] = str(at / "mistaken.o")
    command = [str(at / name) if word.endswith(name) else word for word in command]
    called(*command, cwd=built)
    objects = [o for o in built.glob("CMakeFiles/**/*.o") if not o.name.startswith(Path(name).name)]
    called(
        f"{asm.CROSS}g++", "-static", "-pthread", *objects, at / "mistaken.o", "-o", at / "program"
    )
    return at / "program"


@pytest.mark.parametrize("name", [None, *cases(MISTAKES, ALWAYS)])
def test_mistakes_are_seen(built: Path, tmp_path: Path, name: str | None) -> None:
    mistake = MISTAKES[name] if name else Mistake("struct NeonLane", "struct NeonLane")
    given, expected = million(mistake.law, mistake.dtype, 1)
    got = run(mistaken(built, tmp_path, mistake), mistake.isa, "fill", given)
    assert len(got) == len(expected)
    assert (got == expected) == (name is None)
