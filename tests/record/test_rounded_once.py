"""A dtype is how a parameter is stored: what is computed is computed in float32, and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastinit
from fastinit import checkpoint
from fastinit.plan.fill import Fill
from fastinit.stream.rounding import rounded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated"),
    pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated"),
]

Build = Callable[[], nn.Module]


class Own(nn.Module):
    """A weight, and what is made of it."""

    def __init__(self, make: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(24, 16))
        nn.init.normal_(self.weight)
        with torch.no_grad():
            make(self, self.weight)


def pruned() -> nn.Module:
    layer = nn.Linear(16, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def tied() -> nn.Module:
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(16, 16)) for _ in range(2)))
    own = [layer.parametrizations.weight for layer in model]
    own[1].original0 = own[0].original0
    return model


def normed_rows(m: nn.Module, w: Tensor) -> None:
    m.scale = nn.Parameter(w.norm(dim=1))


def buffers(m: nn.Module, w: Tensor) -> None:
    m.register_buffer("largest", w.abs().amax(0))
    m.register_buffer("gram", w @ w.t())


def in_place(m: nn.Module, w: Tensor) -> None:
    w[:, 3].mul_(w.square().mean()).add_(w[:, 5])
    w[4:9] /= w[4:9].norm(dim=1, keepdim=True)


def several(m: nn.Module, w: Tensor) -> None:
    m.a = nn.Parameter(torch.softmax(w * 3.0, 0))
    m.b = nn.Parameter(torch.linalg.vector_norm(m.a, dim=1))
    m.c = nn.Parameter(torch.cat([m.b, m.a.sum(1)]))
    m.d = nn.Parameter(w.t().contiguous() @ m.a)


TABLE: dict[str, Build] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(16, 32)),
    "weight_norm of a convolution": lambda: parametrizations.weight_norm(
        nn.Conv1d(8, 8, 16), dim=2
    ),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(16, 32)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 8)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(16, 8)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(16, 8)),
    "prune": pruned,
    "tied": tied,
    "norms": lambda: Own(normed_rows),
    "buffers": lambda: Own(buffers),
    "in place": lambda: Own(in_place),
    "several": lambda: Own(several),
}
LOW = [torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def recorded(build: Build, dtype: torch.dtype = torch.float32) -> nn.Module:
    with by_default(dtype), fastinit.deferred(seed=5):
        return build()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def stored(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    checkpoint.write(model, folder, dtype=dtype)
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def applied(build: Build, dtype: torch.dtype) -> nn.Module:
    plan = fastinit.recorded_plan(recorded(build))
    return plan.apply_(recorded(build), device="cpu", dtype=dtype)


def check(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in got.items():
        their = wanted[name].to(tensor.dtype)  # of a buffer that was built in fewer bits
        assert torch.equal(tensor.float(), their.float()), name


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in TABLE),
        *((name, dtype) for name in ("weight_norm", "several", "prune") for dtype in LOW[1:]),
    ],
    ids=str,
)
def test_all_ways_give_the_float32_values_rounded(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Norms of rounded weights were given for rounded norms, where the constructor ran in the dtype."""
    build = TABLE[name]
    plan = fastinit.recorded_plan(recorded(build))
    float32 = state(fastinit.materialize_(recorded(build)))
    given = fastinit.materialize_(recorded(build), dtype=dtype)
    parameters = {n for n, _ in given.named_parameters(remove_duplicate=False)}
    assert all(state(given)[n].dtype == dtype for n in parameters)
    bounded = {n for n in plan if isinstance(plan[n], Fill) and "uniform" in str(plan[n])}
    wanted = {
        n: state(given)[n] if n in bounded else rounded(v, dtype) if n in parameters else v
        for n, v in float32.items()  # a uniform law stays in its interval in each dtype
    }
    check(state(given), wanted)
    check(state(applied(build, dtype)), wanted)
    if dtype.itemsize > 1:  # checkpoints have scales beside 8 bits
        check(stored(recorded(build), tmp_path / "given", dtype), wanted)
    if dtype.itemsize > 1 and name != "orthogonal":  # torch has no such default, and no such QR
        check(state(fastinit.materialize_(recorded(build, dtype))), wanted)
        check(stored(recorded(build, dtype), tmp_path / "built", None), wanted)


def stored_as(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    return rounded(values, dtype or torch.float32).float()


@pytest.mark.parametrize("dtype", [None, *LOW], ids=str)
def test_what_leads_to_parameters_of_a_dtype_is_computed_from_them(
    dtype: torch.dtype | None,
) -> None:
    """It failed with an error about storage, after half of the model was written."""
    layer = fastinit.materialize_(recorded(TABLE["old weight_norm"]), dtype=dtype)
    g, v = layer.weight_g.detach().float(), layer.weight_v.detach().float()
    direct = torch._weight_norm(v, g, 0)
    assert torch.equal(layer.weight.detach().float(), stored_as(direct, dtype))
    assert layer.weight.grad_fn is not None

    layer = fastinit.materialize_(recorded(pruned), dtype=dtype)
    direct = layer.weight_mask.float() * layer.weight_orig.detach().float()
    assert torch.equal(layer.weight.detach().float(), stored_as(direct, dtype))
    layer.weight.float().sum().backward()
    assert layer.weight_orig.grad is not None
    assert torch.equal(layer.weight_orig.grad.float(), layer.weight_mask.float())


@pytest.mark.parametrize("built", [torch.float32, torch.bfloat16], ids=str)
def test_what_only_lies_otherwise_stays_within_its_law(built: torch.dtype) -> None:
    """A uniform law never gives its upper bound, also where the parameter is a transposed view."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(64, 128).uniform_(0.0, 1.0).t())

    model = fastinit.materialize_(recorded(Transposed, built), dtype=torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16
    assert float(model.weight.detach().max()) < 1.0
    float32 = fastinit.materialize_(recorded(Transposed))
    below = float32.weight.detach() < 0.99
    assert torch.equal(model.weight.detach()[below], float32.weight.detach()[below].bfloat16())


def test_conversions_and_bits_are_of_the_values_that_the_constructor_had() -> None:
    """A constructor that runs in bfloat16, converts, and looks at bits, has those of bfloat16."""

    def make(m: nn.Module, w: Tensor) -> None:
        m.master = nn.Parameter(w.float())
        m.norm = nn.Parameter(w.float().norm(dim=1))
        m.copied = nn.Parameter(torch.empty(24, 16, dtype=torch.float32).copy_(w * 3))
        m.register_buffer("bits", w.view(torch.int16) >> 7)
        flipped = w.clone()
        flipped.view(torch.int16).bitwise_xor_(-(1 << 15))
        m.flipped = nn.Parameter(flipped)

    model = fastinit.materialize_(recorded(lambda: Own(make), torch.bfloat16))
    weight = model.weight.detach()
    assert weight.dtype == torch.bfloat16
    assert torch.equal(model.master.detach(), weight.float())
    assert torch.equal(model.norm.detach(), weight.float().norm(dim=1))
    assert torch.equal(model.copied.detach(), model.copied.detach().bfloat16().float())
    assert torch.equal(model.bits, weight.view(torch.int16) >> 7)
    assert torch.equal(model.flipped.detach(), -weight)


@pytest.mark.parametrize("fill", [Fill.orthogonal(), Fill.sparse(0.2, 0.5), Fill.eye()], ids=str)
def test_distributions_of_whole_tensors_are_scaled_before_they_are_rounded(fill: Fill) -> None:
    plan = fastinit.Plan({"weight": fill.scaled(0.3)}, seed=5)
    build = lambda: nn.Linear(16, 16, bias=False, device="meta")  # noqa: E731
    float32 = plan.apply_(build(), device="cpu").weight.detach()
    for dtype in LOW:
        weight = plan.apply_(build(), device="cpu", dtype=dtype).weight.detach()
        assert torch.equal(weight.float(), stored_as(float32, dtype))
