"""Backends: the choice, forcing one, and what info() says."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
import warm
from same_bits import ISAS, TRITON, bits

from fastinit.backends import choose as backends
from fastinit.backends.choose import backend
from fastinit.backends.contract import Backend, Write
from fastinit.backends.installation import info
from fastinit.fills.operator import Request, fill_, fill_many_
from fastinit.stream import laws

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(not ISAS, reason="no native module")


def drawn() -> torch.Tensor:
    return fill_(torch.empty(1000), laws.normal(), seed=1)


@needs_native
def test_native_serves_the_cpu() -> None:
    assert backends.choose(CPU) is backends.native


def test_the_first_backend_that_can_serves() -> None:
    for device in (CPU, torch.device("cuda"), torch.device("xpu")):
        chosen = backends.choose(device)
        for candidate in backends.BACKENDS:
            if candidate is chosen:
                break
            assert candidate.serves(device)


def test_reference_serves_everything() -> None:
    with backend("reference"):
        for device in ("cpu", "cuda", "mps", "xpu"):
            assert backends.choose(torch.device(device)).name == "reference"


@pytest.mark.parametrize("name", ["native", *TRITON, "reference"])
def test_a_forced_backend_writes_the_same_bits(name: str) -> None:
    if name == "native" and not ISAS:
        pytest.skip("no native module")
    expected = drawn()
    with backend(name):
        assert bits(drawn()).equal(bits(expected))


def test_a_block_ends_and_nests() -> None:
    default = backends.choose(CPU)
    with backend("reference"):
        with backend("native"):
            assert backends.forced() is backends.native
        with pytest.raises(RuntimeError), backend("native"):
            backends.choose(torch.device("xpu"))
        assert backends.choose(CPU).name == "reference"
    assert backends.choose(CPU) is default


def test_a_block_is_its_threads_own() -> None:
    found = []
    with backend("reference"):
        thread = threading.Thread(target=lambda: found.append(backends.forced()))
        thread.start()
        thread.join()
    assert found == [None]


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "plain": lambda: torch.zeros(8),
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(8)),
    "strided": lambda: torch.zeros(8, 2)[:, 1],
    "complex": lambda: torch.zeros(8, dtype=torch.complex64),
    "negated": lambda: torch.zeros(8, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forced_backend_that_cannot_serve_is_an_error_and_nothing_is_written_or_drawn(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native = backends.native
    monkeypatch.setattr(native, "missing", "it has gone")
    tensor, state = KINDS[kind](), torch.get_rng_state()
    version = tensor._version
    message = "backend 'native' cannot fill a tensor on cpu: it has gone"
    with backend("native"):
        with pytest.raises(RuntimeError, match=message):
            fill_(tensor, laws.normal())
        with pytest.raises(RuntimeError, match=message):
            fill_(tensor, laws.normal(), seed=1)
        with pytest.raises(RuntimeError, match=message):
            fill_many_([Request(tensor, laws.normal(), 1)])
    assert not tensor.any()
    assert tensor._version == version
    assert torch.get_rng_state().equal(state)


def test_the_short_way_asks_too_whether_native_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Write] = []

    class Next(Backend):
        name = "next"

        def serves(self, device: torch.device) -> str | None:
            return None

        def fill_many(self, writes: Sequence[Write]) -> None:
            written.extend(writes)

    monkeypatch.setattr(backends, "BACKENDS", list(backends.BACKENDS))
    backends.register(Next(), before="triton")
    drawn()
    assert not written or not ISAS
    monkeypatch.setattr(backends.native, "missing", "it has gone")
    written.clear()
    drawn()
    assert len(written) == 1


def test_native_does_not_serve_a_device_it_has_no_kernels_for() -> None:
    with backend("native"), pytest.raises(RuntimeError, match="cannot fill a tensor on xpu"):
        backends.choose(torch.device("xpu"))


@pytest.mark.parametrize("name", ["", "cuda", "Native", None, 3])
def test_an_unknown_name(name: str) -> None:
    message = "name must be one of 'native', 'triton', 'reference', but got"
    with pytest.raises(ValueError, match=message), backend(name):
        pass


# --- FASTINIT_ISA --------------------------------------------------------------------------------

SHOW = """
import torch
from fastinit.backends import choose as backends
from fastinit.stream import laws
from fastinit.fills.operator import fill_
values = fill_(torch.empty(5), laws.normal(), seed=1).tolist()
print(backends.native.module.isa(), *(v.hex() for v in values))
"""


def python(isa: str) -> subprocess.CompletedProcess[str]:
    return warm.run(SHOW, env={**os.environ, "FASTINIT_ISA": isa})


@needs_native
def test_the_environment_forces_a_cpu_build() -> None:
    expected = fill_(torch.empty(5), laws.normal(), seed=1).tolist()
    done = python("baseline")
    assert done.stdout.split() == ["baseline", *(v.hex() for v in expected)], done.stderr


@needs_native
def test_an_impossible_cpu_build_in_the_environment_is_an_error() -> None:
    done = python("sse9")
    assert done.returncode != 0
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "ValueError: FASTINIT_ISA=sse9: no CPU build is named 'sse9'; there are "
    )
    assert "baseline" in last


@needs_native
def test_forcing_an_unknown_cpu_build_keeps_the_one_in_use() -> None:
    module = backends.native.module
    assert module is not None
    before = module.isa()
    with pytest.raises(ValueError, match="no CPU build is named 'sse9'"):
        module.force_isa("sse9")
    assert module.isa() == before


def test_a_registered_backend_is_asked_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Backend):
        name = "odd"

        def serves(self, device: torch.device) -> str | None:
            return None if device.type == "mps" else "mps only"

        def fill_many(self, writes: object) -> None:
            raise AssertionError("nothing is filled here")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "BACKENDS", list(backends.BACKENDS))
    backends.register(Odd(), before="reference")
    assert [b.name for b in backends.BACKENDS] == ["native", "triton", "odd", "reference"]
    assert backends.choose(torch.device("mps")).name == "odd"
    with (
        pytest.raises(RuntimeError, match="'odd' cannot measure a tensor on mps: it measures none"),
        backend("odd"),
    ):
        backends.choose_measuring(torch.device("mps"))
    assert backends.choose_measuring(torch.device("mps")).name == "reference"
    with pytest.raises(
        TypeError, match=r"new must be a fastinit.backends.Backend, but got .*object"
    ):
        backends.register(object(), before="native")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="new has a name that is taken: 'odd'"):
        backends.register(Odd(), before="native")
    with pytest.raises(ValueError, match=r"before must be one of native, .* but got 'cuda'"):
        backends.register(Odd(), before="cuda")


needs_cuda_build = pytest.mark.skipif(
    backends.native.module is None or not backends.native.module.cuda_archs,
    reason="no CUDA kernels were built",
)


@needs_cuda_build
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_build_without_a_driver_works_and_says_why_it_does_not_serve_gpus() -> None:
    assert backends.native.module is not None
    reason = backends.native.serves(torch.device("cuda:0"))
    assert reason is not None
    assert "CUDA driver" in reason
    assert f"{backends.native.module.cuda_archs} by nvcc" in info()["native"]["CUDA"]
    fill = backends.native.prepared(laws.normal(), torch.float32)
    pieces = backends.native.module.Pieces([(fill, 1 << 20, 0, 0, 0, (10_000,), (1,), (1,))])
    shape = f"fill_many<<<at most {pieces.tiles}, {backends.native.module.THREADS}>>> on cuda:0"
    with pytest.raises(RuntimeError, match=re.escape(shape)) as error:
        pieces.fill(0, 0, 0)
    assert re.search(r"driver.*\(cudaError\w+\)", str(error.value)), error.value


@needs_cuda_build
def test_a_driver_too_old_for_the_build_leaves_gpus_to_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    why = "the driver is for CUDA 12.4, the native build needs 13.0"
    monkeypatch.setattr(backends.native, "missing_on", lambda index: why)
    monkeypatch.setitem(backends.triton.__dict__, "missing", None)
    device = torch.device("cuda:0")
    assert backends.native.serves(device) == why
    assert backends.choose(device) is backends.triton
    assert backends.explain(device) == f"triton; not native: {why}"
