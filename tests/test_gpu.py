"""On a GPU: native CUDA, Triton and the CPU write the same bits, and measure the same (``make gpu``).

What needs no GPU to be known is in test_cuda_text.py, test_ptx.py and test_sass.py.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_moments import higher_near, near, raw_moments
from same_bits import bits
from torch import Tensor, nn

from fastinit.backends import choose as backends
from fastinit.backends.choose import backend
from fastinit.backends.installation import info
from fastinit.command import devices
from fastinit.elements import tensors
from fastinit.fills.operator import Request, Window, fill_, fill_many_
from fastinit.plan.fill import Fill
from fastinit.plan.plan import Plan
from fastinit.statistics.tensor import moments, moments_many
from fastinit.stream import laws
from fastinit.stream.formats import BY_POWER, FORMATS, UNSCALED
from fastinit.stream.keys import stream_id
from fastinit.stream.laws import Law

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LAWS = (
    laws.uniform(-0.1, 0.3),
    laws.normal(0.01, 0.02),
    laws.truncated_normal(std=0.02),  # the whole tail
    laws.constant(1 / 3),
)
BACKENDS = ("native", "triton")
SEED, STREAM = 2**63 + 12345, stream_id("model.layers.0.weight")


def test_both_gpu_backends_serve_here() -> None:
    device = torch.device("cuda")
    assert [backends.native.serves(device), backends.triton.serves(device)] == [None, None]
    assert info()["choice"]["cuda:0"] == "native"


def test_the_gate_takes_the_short_way_here_too() -> None:
    """What is plain on the CPU is on a GPU; whoever reads memory here is told nothing of it."""
    plain = torch.ones(4, 6, device="cuda")
    freed = torch.ones(4, 6, device="cuda")
    freed.untyped_storage().resize_(40)
    marked = torch.ones(4, 6, device="cuda")
    marked.said = "by somebody"  # type: ignore[attr-defined]
    for tensor in (plain, plain[1:], nn.Parameter(plain), marked):
        assert tensors.plain_address(tensor) == tensor.data_ptr()
        assert tensors.plain_cpu_address(tensor) == tensors.whole_cpu_address(tensor) == 0
        assert bool(tensors.whole_address(tensor)) is (tensor is not marked)
    for tensor in (plain.t(), freed, plain * nn.Parameter(plain)):
        assert tensors.whole_address(tensor) == 0


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_a_billion_elements_are_those_of_the_cpu(law: Law, dtype: torch.dtype) -> None:
    expected = fill_(torch.empty(1 << 30, dtype=dtype), law, seed=SEED, stream=STREAM).cuda()
    got = torch.empty_like(expected)
    for name in BACKENDS:
        got.view(torch.uint8).fill_(0xA5)
        with backend(name):
            fill_(got, law, seed=SEED, stream=STREAM)
        assert bits(got).equal(bits(expected)), name


@pytest.mark.parametrize("name", BACKENDS)
def test_the_far_end_of_more_than_2_to_the_32_elements(name: str) -> None:
    law, some = laws.normal(), 1 << 20
    n = (1 << 32) + some + 12345
    tensor = torch.empty(n, dtype=torch.bfloat16, device="cuda")
    with backend(name):
        fill_(tensor, law, seed=SEED)
    for start in (0, (1 << 32) - some // 2, n - some):
        expected = torch.empty(some, dtype=torch.bfloat16)
        fill_(expected, law, seed=SEED, window=Window((1,), start))
        assert bits(tensor[start : start + some].cpu()).equal(bits(expected)), start


@pytest.mark.parametrize("name", BACKENDS)
def test_across_the_carry_of_the_low_counter_word(name: str) -> None:
    window = Window((1,), (1 << 34) - 100_003)
    expected = fill_(torch.empty(200_000), laws.normal(), seed=SEED, window=window)
    with backend(name):
        got = fill_(torch.empty(200_000, device="cuda"), laws.normal(), seed=SEED, window=window)
    assert bits(got.cpu()).equal(bits(expected))


def mixed_requests(device: str) -> list[Request]:
    """A thousand windows of all laws and dtypes: whole, transposed, strided, shards, misaligned."""
    choose = random.Random(0)
    requests = []
    for i in range(1000):
        dtype = choose.choice(laws.DTYPES)
        rows, columns = choose.randint(1, 300), choose.randint(1, 300)
        base = torch.zeros(rows, columns, dtype=dtype, device=device)
        tensor, window = base, None
        kind = choose.randrange(5)
        if kind == 1:
            tensor = base.t()
        elif kind == 2:
            tensor = base[::2, 1:]
        elif kind == 3:
            window = Window((7 * columns, 1), choose.randrange(1 << 40))
        elif kind == 4:
            window = Window((3 * columns, 3), choose.randrange(1 << 40))
        if tensor.numel():
            law = choose.choice(LAWS)
            requests.append(Request(tensor, law, choose.getrandbits(64), i, window))
    return requests


def bases(requests: list[Request]) -> list[Tensor]:
    return [r.tensor if r.tensor._base is None else r.tensor._base for r in requests]


def assert_like_the_cpu(requests: list[Request]) -> None:
    expected = mixed_requests("cpu")
    fill_many_(expected)
    for i, (theirs, ours) in enumerate(zip(bases(expected), bases(requests))):
        assert bits(theirs).equal(bits(ours.cpu())), i


@pytest.mark.parametrize("name", BACKENDS)
def test_a_thousand_mixed_windows(name: str) -> None:
    requests = mixed_requests("cuda")
    with backend(name):
        fill_many_(requests)
    assert_like_the_cpu(requests)


def test_they_are_one_launch() -> None:
    requests = mixed_requests("cuda")
    fill_many_(requests)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        fill_many_(requests)
        torch.cuda.synchronize()
    launched = {e.key: e.count for e in profile.key_averages() if "fill_many" in e.key}
    if not profile.key_averages():
        pytest.skip("the profiler sees no kernels here")
    assert list(launched.values()) == [1]


def test_a_side_stream_is_where_it_happens() -> None:
    expected = fill_(torch.empty(1 << 20), laws.normal(), seed=1)
    tensor = torch.zeros(1 << 20, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        tensor.fill_(7)  # undone by the fill, if that waits for it
        fill_(tensor, laws.normal(), seed=1)
    assert not side.query()  # nothing waited for the device
    torch.cuda.current_stream().wait_stream(side)
    assert bits(tensor.cpu()).equal(bits(expected))


def test_a_graph_replays_one_tensor_and_many() -> None:
    one, many = torch.empty(100_003, device="cuda"), mixed_requests("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fill_(one, laws.normal(), seed=1)
        fill_many_(many)
    for _ in range(2):
        one.zero_()
        for base in bases(many):
            base.zero_()
        graph.replay()
        assert bits(one.cpu()).equal(bits(fill_(torch.empty(100_003), laws.normal(), seed=1)))
        assert_like_the_cpu(many)


FIRST_LAUNCH = """
import torch
from fastinit import init
t = torch.empty(100, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    init.normal_(t, seed=1)
t.zero_()
graph.replay()
assert t.cpu().equal(init.normal_(torch.empty(100), seed=1))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)


def test_the_first_launch_of_a_process_may_be_captured() -> None:
    done = run(sys.executable, "-c", FIRST_LAUNCH)
    assert done.returncode == 0, done.stderr


def test_compute_sanitizer_finds_nothing() -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        pytest.skip("no compute-sanitizer")
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_gpu as t; "
        "from fastinit.fills.operator import *; "
        "r = t.mixed_requests('cuda')[:200]; fill_many_(r); t.torch.cuda.synchronize()"
    )
    done = run(program, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", code)
    if done.returncode != 9 and "ERROR SUMMARY" not in done.stdout:
        pytest.skip(f"compute-sanitizer does not run here: {(done.stdout + done.stderr)[-300:]}")
    assert "ERROR SUMMARY: 0 errors" in done.stdout, done.stdout[-2000:]


def test_a_model_on_several_devices_is_that_of_one() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))

    def rule(name: str, module: nn.Module, shape: torch.Size, config: object) -> Fill:
        return Fill.normal(std=0.02)

    plan = Plan.from_model(model(), rule, seed=5)
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    spread = model()
    for i, layer in enumerate(spread):
        layer.to(devices[i % len(devices)])
    plan.apply_(spread)
    meta = plan.apply_(model().to("meta"), device="cuda")
    for a, b, c in zip(plan.apply_(model()).parameters(), spread.parameters(), meta.parameters()):
        assert bits(a).equal(bits(b.cpu()))
        assert bits(a).equal(bits(c.cpu()))
        assert c.is_cuda


def test_a_device_that_is_not_there_is_an_error_with_cuda_s_text() -> None:
    module = backends.native.module
    fill = backends.native.prepared(laws.normal(), torch.float32)
    pieces = module.Pieces([(fill, 16, 0, 0, 0, (4,), (1,), (1,))])  # 16: an address, of nothing
    with pytest.raises(RuntimeError, match=r"fill_many.*cudaErrorInvalidDevice"):
        pieces.fill(99, 0, 0)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_moments_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    x = torch.randn(3_000, 1_001).to(dtype)
    x[5, 7], x[:, 3] = float("nan"), 1e4
    for view, dim in ((x, None), (x.t(), None), (x[:, 1:], None), (x, 1), (x, 0), (x[:0], None)):
        here, there = moments(view, dim=dim).raw, moments(view.cuda(), dim=dim).raw
        assert there.is_cuda
        assert near(there.cpu(), here)
        with backend("triton"):
            assert bits(moments(view.cuda(), dim=dim).raw).equal(bits(there))
    assert bits(moments(x[:, 1:].cuda()).raw.cpu()).equal(bits(raw_moments(x[:, 1:], False)))
    many = [x[:n] for n in range(40)]  # more than a launch carries
    for here, there in zip(moments_many(many), moments_many([m.cuda() for m in many])):
        assert near(there.raw.cpu(), here.raw)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_higher_moments_are_the_reference_s(dtype: torch.dtype) -> None:
    x = torch.randn(3_000, 1_001).to(dtype)
    x[5, 7], x[:, 3] = float("nan"), 1e4
    for view, dim in ((x, None), (x.t(), None), (x[:, 1:], None), (x, 1), (x, 0), (x[:0], None)):
        with backend("reference"):
            expected = moments(view, dim=dim, higher=True).raw
        there = moments(view.cuda(), dim=dim, higher=True).raw
        assert bits(there[..., :7]).equal(bits(moments(view.cuda(), dim=dim).raw))
        assert bits(there).equal(bits(moments(view.cuda(), dim=dim, higher=True).raw))
        assert higher_near(there.cpu(), expected)
    many = [x[:n] for n in range(40)]
    for one, m in zip(many, moments_many([m.cuda() for m in many], higher=True)):
        assert bits(m.raw).equal(bits(moments(one.cuda(), higher=True).raw))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_gets_no_context() -> None:
    code = """
import torch, fastinit
x = torch.empty(1000, device="cuda:1")
had = torch._C._cuda_hasPrimaryContext(0)
fastinit.init.normal_(x, seed=1)
fastinit.moments(x).std
assert torch._C._cuda_hasPrimaryContext(0) == had
assert torch.cuda.current_device() == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_moments_of_more_than_2_to_the_32_elements() -> None:
    x = torch.zeros((1 << 32) + 5, dtype=torch.bfloat16, device="cuda")
    x[-1] = 3.0
    m = moments(x)
    assert (m.count, m.zeros, m.max) == ((1 << 32) + 5, (1 << 32) + 4, 3.0)


def test_moments_wait_for_nothing_and_can_be_captured() -> None:
    x = torch.randn(1 << 20, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        raw, higher = moments(x).raw, moments(x, higher=True).raw
        counts = [moments(x, formats=[f], histogram=True).counts for f in ("mxfp8", "nvfp4")]
    x.normal_()
    graph.replay()
    for count in counts:
        expected = moments(x.cpu(), formats=count.asked.formats, histogram=True).counts
        assert count.numbers.cpu().equal(expected.numbers)
    assert near(raw.cpu(), moments(x.cpu()).raw)
    assert higher_near(higher.cpu(), moments(x.cpu(), higher=True).raw)


NET = """
import torch


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(512, 512), torch.nn.BatchNorm1d(512), torch.nn.Linear(512, 8)
    )
"""


def test_the_commands_take_the_gpu_and_say_so(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("typer")
    from fastinit.command import cli

    (tmp_path / "gpu_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    both = ["--compare", "--device", "cpu", "--device", "auto"]
    assert cli.main(["init", "gpu_net:build", *both]) == 0
    said = capsys.readouterr().out
    cpu, gpu = said.split("\non cuda:")
    name = torch.cuda.get_device_name(int(gpu[0]))
    assert "on cpu: as asked" in cpu
    assert name in " ".join(gpu.split("\n\n")[0].split())
    by = backends.choose(torch.device("cuda", int(gpu[0]))).name
    for row in (
        f"fill by {by}, first run",
        f"fill by {by}, later runs",
        "torch.nn.init, later runs",
    ):
        assert f"\n{row}" in gpu
    # The same bits are measured on both; the two sums may be rounded otherwise.
    tables = [part.split("std measured")[0].split("parameter ")[1] for part in (cpu, gpu)]
    assert tables[0] == tables[1]
    for device in ("auto", "cuda", "cuda:0"):
        shape = ["--shape", "64x512", "--device", device]
        assert cli.main(["inspect", "gpu_net:build", *shape]) == 0
        assert "\non cuda:" in capsys.readouterr().out


def test_too_much_for_the_gpu_is_said() -> None:
    gpus, missing = devices.found()
    assert [gpu.problem for gpu in gpus] == [""] * torch.cuda.device_count()
    choice = devices.choose("auto", 1 << 60, gpus, missing)
    assert choice.device.type == "cpu"
    assert "GB free, but" in choice.why

    def work(choice: devices.Choice) -> torch.device:
        torch.empty(
            1 << 60, dtype=torch.uint8, device="meta" if choice.device.type == "cpu" else "cuda"
        )
        return choice.device

    assert devices.choose("auto", 0, gpus, missing).attempt(work).type == "cpu"


def test_a_gpu_s_time_is_that_of_its_work() -> None:
    x = torch.ones(1 << 28, device="cuda")
    clock = devices.clock(x.device)
    assert clock(lambda: None) < clock(lambda: [x.zero_() for _ in range(20)])


# The last, as Triton compiles for a minute for each dtype.
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_counts_are_the_reference_s(dtype: torch.dtype, name: str) -> None:
    """In the read of the moments, behind it (blocks of rows, scales of the tensor), and by channel."""
    x = torch.randn(3_000, 1_056).mul(torch.logspace(-20, 20, 1_056, base=2)).to(dtype)
    x[5, 7], x[6, 8], x[:, 3], x[7] = float("nan"), float("inf"), 1e4, 0
    unscaled = [name for name, row in FORMATS.items() if not row.scaling]
    in_powers = [name for name, row in FORMATS.items() if row.scaling in (UNSCALED, BY_POWER)]
    for formats in (in_powers, list(FORMATS)):
        for view in (x, x.t(), x[:, 1:], x.flatten()[1:], x[:, ::3], x[:0]):
            assert_counted(view, name, formats)
    assert_counted(x, name, unscaled, 1)
    assert_counted(x[:50], name, unscaled, 0)
    many = [x[:n] for n in range(40)]  # more than a launch carries
    with backend(name):
        there = moments_many([m.cuda() for m in many], formats=list(FORMATS), histogram=True)
    for here, m in zip(many, there):
        expected = moments(here, formats=list(FORMATS), histogram=True).counts
        assert m.counts.numbers.cpu().equal(expected.numbers)


def assert_counted(x: Tensor, name: str, formats: list[str], dim: int | None = None) -> None:
    expected = moments(x, dim=dim, formats=formats, histogram=True)
    there = x.cuda()
    with backend(name):
        got = moments(there, dim=dim, formats=formats, histogram=True)
        assert got.counts.numbers.is_cuda
        assert got.counts.numbers.cpu().equal(expected.counts.numbers)
        assert bits(got.raw).equal(bits(moments(there, dim=dim).raw))
