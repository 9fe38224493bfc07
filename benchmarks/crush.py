"""``python -m benchmarks.crush``: TestU01's SmallCrush on the number stream, in several layouts.

Needs a C++ compiler and TestU01 (L'Ecuyer & Simard 2007): Debian's and Ubuntu's libtestu01-0-dev, or
any build of it, whose prefix the environment variable TESTU01 then names. TestU01's licence allows
research use only, so fastinit neither ships nor needs it.

SmallCrush gives 15 p-values for a layout. One beyond 1e-6 of 0 or 1 is a failure: with 6 layouts, a
perfect generator fails with probability 2e-4. TestU01 calls one beyond 1e-3 suspect; of those a perfect
generator gives one in five or six runs, and another seed tells. Seeds and streams are fixed, so a run
can be repeated exactly. ``--rounds 4`` shows that the battery can fail: it weakens Philox.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.timing import machine
from fastinit.base.text import table
from fastinit.stream.keys import stream_id

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = (
    "consecutive-elements",
    "consecutive-streams",
    "consecutive-seeds",
    "interleaved-parameters",
    "bit-reversed",
    "normals-through-phi",
)
SUSPECT, FAILED = 1e-3, 1e-6
SEED = 0
# The streams of a transformer's weights, of which all but one layout take the first.
NAMES = [
    f"model.layers.{layer}.{part}.weight"
    for layer in range(8)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]
LIBRARIES = (  # as Debian names them, and as TestU01 does
    ["-ltestu01", "-ltestu01probdist", "-ltestu01mylib"],
    ["-ltestu01", "-lprobdist", "-lmylib"],
)


def build(folder: Path, rounds: int) -> Path:
    """Compiles tests/cpp/crush.cpp with csrc/stream.h, with another number of rounds if asked."""
    stream = (ROOT / "csrc" / "stream.h").read_text()
    text, found = re.subn(r"(PHILOX_ROUNDS = )\d+", rf"\g<1>{rounds}", stream)
    assert found == 1
    (folder / "stream.h").write_text(text)
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-std=c++17", "-O2", "-mfma"]
    command += ["-ffp-contract=off", f"-I{folder}", f"-I{ROOT / 'csrc'}"]
    libraries: list[str] = []
    if prefix := os.environ.get("TESTU01"):
        for header in Path(prefix).glob("include/**/gdefconf.h"):
            command += [f"-I{header.parent}", f"-I{header.parent.parent}"]
        command.append(f"-I{prefix}/include")
        for library in Path(prefix).glob("lib*/**/libtestu01.*"):
            place = str(library.parent)
            libraries += [f"-L{place}", f"-Wl,-rpath,{place}", "-Wl,--disable-new-dtags"]
    program = folder / "crush"
    command += [str(ROOT / "tests" / "cpp" / "crush.cpp"), "-o", str(program), *libraries]
    errors = []
    for names in LIBRARIES:
        try:
            built = subprocess.run([*command, *names, "-lm"], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise SystemExit(f"make crush needs a C++ compiler: {error}") from None
        if built.returncode == 0:
            return program
        errors.append(built.stderr)
    raise SystemExit(
        f"{errors[0]}\nmake crush needs TestU01: install libtestu01-0-dev (in Debian's non-free and "
        "Ubuntu's multiverse component), or set TESTU01 to the prefix of a build of it"
    )


def crush(program: Path, layout: str, seed: int) -> list[tuple[str, float]]:
    """The p-value of each of SmallCrush's statistics."""
    streams = [str(stream_id(name)) for name in NAMES]
    ran = subprocess.run(
        [str(program), layout, str(seed), *streams], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^p (.+) (\S+)$", ran.stdout, re.MULTILINE)
    return [(name, float(value)) for name, value in found]


def distance(p: float) -> float:
    """How near a p-value is to the nearer of 0 and 1."""
    return min(p, 1 - p)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crush", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--rounds", type=int, default=10, help="of Philox (10: the stream)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), options.rounds)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda layout: crush(program, layout, options.seed), LAYOUTS))

    about = machine()
    lines = [
        "SmallCrush of TestU01 on fastinit's stream",
        f"{about['cpu']}, {about['date']}",
        f"seed {options.seed}, {options.rounds} rounds of Philox; suspect: a p-value within "
        f"{SUSPECT:g} of 0 or 1, failed: within {FAILED:g}",
        "",
    ]
    rows = [["layout", "p-values", "least", "greatest", "suspect", "failed"]]
    for layout, found in zip(LAYOUTS, results):
        values = [p for _, p in found]
        suspect = sum(distance(p) < SUSPECT for p in values)
        failed = sum(distance(p) < FAILED for p in values)
        extremes = [f"{min(values):.3g}", f"{max(values):.6g}"]
        rows.append([layout, str(len(values)), *extremes, str(suspect), str(failed)])
    lines.append(table(rows, "<>>>>>"))
    everything = [(layout, *each) for layout, found in zip(LAYOUTS, results) for each in found]
    worst = [each for each in everything if distance(each[2]) < SUSPECT]
    lines += ["", *(f"{layout}: {name} p = {p:.6g}" for layout, name, p in worst)]
    failed = sum(distance(p) < FAILED for _, _, p in everything)
    lines += [f"{len(everything)} p-values, {len(worst)} suspect, {failed} failed"]
    text = "\n".join(lines)
    print(text)

    name = re.sub(r"[^A-Za-z0-9]+", "-", about["cpu"]).strip("-").lower()
    rounds = "" if options.rounds == 10 else f"-rounds-{options.rounds}"
    seed = "" if options.seed == SEED else f"-seed-{options.seed}"
    path = options.out / f"crush-{name}{rounds}{seed}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(f"\nsaved as {path}")
    return 1 if failed or any(len(found) != 15 for found in results) else 0


if __name__ == "__main__":
    sys.exit(main())
