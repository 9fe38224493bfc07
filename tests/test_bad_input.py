"""What fastinit.init refuses: the exception, its message, and the tensor as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fastinit import init
from fastinit.fills import operator as ops
from fastinit.stream import laws

NAN, INF = math.nan, math.inf
Case = tuple[str, dict[str, Any], type[Exception], str]

RANDOM: dict[str, dict[str, Any]] = {
    "uniform_": {},
    "normal_": {},
    "trunc_normal_": {},
    "xavier_uniform_": {},
    "xavier_normal_": {},
    "kaiming_uniform_": {},
    "kaiming_normal_": {},
    "variance_scaling_": {},
    "lecun_normal_": {},
    "lecun_uniform_": {},
    "orthogonal_": {},
    "sparse_": {"sparsity": 0.5},
}


def refused(
    tensor: Any, name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = tensor.detach().clone() if isinstance(tensor, Tensor) else None
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        getattr(init, name)(tensor, **arguments)
    assert torch.get_rng_state().equal(state)
    if before is not None:
        assert tensor.detach().equal(before)


NUMBERS: list[Case] = [
    ("normal_", {"std": -1.0}, RuntimeError, "std=-1.0"),
    ("normal_", {"std": NAN}, RuntimeError, "std=nan"),
    ("normal_", {"std": INF}, RuntimeError, "std=inf"),
    ("normal_", {"std": "1 m"}, TypeError, "std must be a number, but got '1 m'"),
    ("normal_", {"mean": NAN}, RuntimeError, "mean=nan"),
    ("normal_", {"mean": -INF}, RuntimeError, "mean=-inf"),
    ("uniform_", {"a": 1.0, "b": 0.0}, RuntimeError, "a=1.0, b=0.0"),
    ("uniform_", {"a": NAN}, RuntimeError, "a=nan"),
    ("uniform_", {"b": INF}, RuntimeError, "b=inf"),
    ("uniform_", {"a": -3e38, "b": 3e38}, RuntimeError, "b=3e\\+38"),
    ("trunc_normal_", {"std": -1.0}, RuntimeError, "std=-1.0"),
    ("trunc_normal_", {"std": NAN}, RuntimeError, "std=nan"),
    ("trunc_normal_", {"std": INF}, RuntimeError, "std=inf"),
    ("trunc_normal_", {"mean": NAN}, RuntimeError, "mean=nan"),
    ("trunc_normal_", {"a": 1.0, "b": -1.0}, RuntimeError, "a=1.0, b=-1.0"),
    ("trunc_normal_", {"a": NAN}, RuntimeError, "a=nan"),
    ("trunc_normal_", {"b": NAN, "sigma": True}, RuntimeError, "b=nan"),
    ("trunc_normal_", {"a": 9.0, "b": 10.0}, RuntimeError, "a=9.0, b=10.0"),
    ("xavier_normal_", {"gain": -2.0}, RuntimeError, "gain must be .* -2.0"),
    ("xavier_uniform_", {"gain": NAN}, RuntimeError, "gain must be .* nan"),
    ("xavier_uniform_", {"gain": INF}, RuntimeError, "gain must be .* inf"),
    ("kaiming_normal_", {"a": NAN}, RuntimeError, "a must be .* nan"),
    ("kaiming_normal_", {"a": True}, ValueError, "a must be a number, but got True"),
    ("kaiming_uniform_", {"a": "x"}, ValueError, "a must be a number, but got 'x'"),
    ("kaiming_uniform_", {"mode": "fan_avg"}, ValueError, "Mode fan_avg"),
    ("kaiming_uniform_", {"nonlinearity": "gelu"}, ValueError, "nonlinearity gelu"),
    ("variance_scaling_", {"scale": -1.0}, ValueError, "scale must be .* -1.0"),
    ("variance_scaling_", {"mode": "fan"}, ValueError, "mode must be .*'fan'"),
    ("variance_scaling_", {"distribution": "t"}, ValueError, "distribution must be .*'t'"),
    ("orthogonal_", {"gain": NAN}, RuntimeError, "gain must be .* nan"),
    ("sparse_", {"sparsity": -0.1}, ValueError, "sparsity must be .*-0.1"),
    ("sparse_", {"sparsity": 1.1}, ValueError, "sparsity must be .*1.1"),
    ("sparse_", {"sparsity": NAN}, ValueError, "sparsity must be .*nan"),
    ("sparse_", {"sparsity": 0.5, "std": -1.0}, RuntimeError, "std=-1.0"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), NUMBERS)
def test_numbers(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    refused(torch.full((4, 3), 7.0), name, arguments, error, message)


@pytest.mark.parametrize("view", [lambda t: t, lambda t: t.t()], ids=["short", "long"])
def test_bounds_beyond_the_dtype(view: Callable[[Tensor], Tensor]) -> None:
    """As torch: they would be drawn at its largest value."""
    tensor = view(torch.ones(4, 3, dtype=torch.float16))
    for bounds in ({"a": -1e5}, {"b": 1e5}):
        refused(tensor, "uniform_", bounds, RuntimeError, "bounds within torch.float16")
    good = torch.ones(3)
    law = laws.uniform(0.0, 1e5)
    with pytest.raises(RuntimeError, match="bounds within"):
        ops.fill_many_([ops.Request(good, law, 0), ops.Request(tensor, law, 0)])
    assert good.eq(1).all()


@pytest.mark.parametrize("fan", [(0, 3), (3, NAN)])
@pytest.mark.parametrize("name", ["xavier_normal_", "kaiming_uniform_", "lecun_normal_"])
def test_fan(name: str, fan: tuple[float, float]) -> None:
    refused(
        torch.full((4, 3), 7.0), name, {"fan": fan}, ValueError, r"fan\[[01]\] must be positive"
    )


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be in .*-1"),
        ({"seed": 1 << 64}, ValueError, "seed must be in .*18446744073709551616"),
        ({"seed": 1.0}, TypeError, "seed must be an int, but got 1.0"),
        ({"seed": True}, TypeError, "seed must be an int, but got True"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator"),
        ({"name": 3}, TypeError, "name must be a str, but got 3"),
    ],
)
def test_keys(name: str, more: dict[str, Any], error: type[Exception], message: str) -> None:
    refused(torch.full((4, 3), 7.0), name, RANDOM[name] | more, error, message)


def _inference() -> Tensor:
    with torch.inference_mode():
        return torch.full((4, 3), 7.0)


TENSORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "int64": (lambda: torch.full((4, 3), 7), NotImplementedError, r"tensor .*int64"),
    "bool": (lambda: torch.ones(4, 3, dtype=torch.bool), NotImplementedError, "tensor .*bool"),
    "float8": (
        lambda: torch.ones(4, 3).to(torch.float8_e8m0fnu),
        NotImplementedError,
        "tensor .*float8_e8m0fnu",
    ),
    "expanded": (lambda: torch.ones(1, 3).expand(4, 3), RuntimeError, "tensor .*share memory"),
    "unfolded": (lambda: torch.ones(6).unfold(0, 3, 1), RuntimeError, "tensor .*share memory"),
    "inference": (_inference, RuntimeError, "tensor is an inference tensor"),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", RANDOM)
def test_tensors(name: str, kind: str) -> None:
    make, error, message = TENSORS[kind]
    tensor = make()
    if kind == "float8":  # has no equal(): compare as bytes
        with pytest.raises(error, match=message):
            getattr(init, name)(tensor, **RANDOM[name])
        assert tensor.view(torch.uint8).equal(make().view(torch.uint8))
    else:
        refused(tensor, name, RANDOM[name], error, message)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_and_sparse() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8)
    with pytest.raises(NotImplementedError, match=r"tensor .*qint8"):
        init.normal_(quantised)
    assert quantised.dequantize().eq(1).all()
    for sparse in (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()):
        with pytest.raises(NotImplementedError, match="tensor has layout torch"):
            init.normal_(sparse)
        assert sparse.to_dense().equal(torch.eye(3))


NO_TENSORS = [n for n in init.__all__ if n.endswith("_") and n in vars(init)]


@pytest.mark.parametrize("name", NO_TENSORS)
@pytest.mark.parametrize("tensor", [[1.0, 2.0], None, 3.0, "x"])
def test_not_a_tensor(name: str, tensor: object) -> None:
    """torch: AttributeError, wherever it stumbles first."""
    arguments = {"constant_": {"val": 1.0}, "sparse_": {"sparsity": 0.5}}.get(name, {})
    with pytest.raises(
        TypeError, match=rf"tensor must be a torch\.Tensor, but got {type(tensor).__name__}"
    ):
        getattr(init, name)(tensor, **arguments)


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "zeros_", "constant_"])
def test_uninitialised_parameter(name: str) -> None:
    layer = nn.LazyLinear(3)
    arguments = {"val": 1.0} if name == "constant_" else {}
    with pytest.raises(ValueError, match=r"uninitialized|UninitializedParameter"):
        getattr(init, name)(layer.weight, **arguments)


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize(
    "name",
    [
        "xavier_uniform_",
        "xavier_normal_",
        "kaiming_uniform_",
        "kaiming_normal_",
        "variance_scaling_",
        "lecun_normal_",
        "lecun_uniform_",
        "orthogonal_",
        "eye_",
        "dirac_",
    ],
)
def test_too_few_dimensions(name: str, shape: tuple[int, ...]) -> None:
    refused(torch.full(shape, 7.0), name, {}, ValueError, "dimensions.*but got shape")


@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("eye_", (2, 3, 4), {}),
        ("sparse_", (2, 3, 4), {"sparsity": 0.5}),
        ("dirac_", (2, 3), {}),
        ("dirac_", (2, 3, 1), {"groups": 0}),
        ("dirac_", (2, 3, 1), {"groups": -1}),
        ("dirac_", (5, 3, 1), {"groups": 2}),
    ],
)
def test_shapes(name: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    refused(torch.full(shape, 7.0), name, arguments, ValueError, "but got shape")


@pytest.mark.parametrize(
    "make", [lambda: torch.ones(1, 3).expand(3, 3), lambda: torch.ones(5).unfold(0, 3, 1)]
)
def test_eye_of_overlapping_elements(make: Callable[[], Tensor]) -> None:
    refused(make(), "eye_", {}, RuntimeError, "share memory")


# --- what is written and lost --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "reparametrise",
    [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm],
)
@pytest.mark.parametrize(
    "name", ["normal_", "trunc_normal_", "orthogonal_", "eye_", "zeros_", "kaiming_uniform_"]
)
def test_a_computed_weight_is_not_written_silently(name: str, reparametrise: Any) -> None:
    layer = reparametrise(nn.Linear(4, 3))
    layer.eval()  # spectral_norm then leaves its own state alone
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.warns(init.LostWriteWarning, match=r"tensor \(shape \(3, 4\)\).*lost") as caught:
        getattr(init, name)(layer.weight)
    assert caught[0].filename == __file__
    assert all(v.equal(before[k]) for k, v in layer.state_dict().items())


def test_the_way_that_the_warning_names() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    value = init.normal_(torch.empty(3, 4), seed=1)
    layer.weight = value
    torch.testing.assert_close(layer.weight, value)


def test_views_of_parameters_and_what_is_not_lost_pass() -> None:
    weight = nn.Parameter(torch.full((6, 3), 7.0))
    init.zeros_(weight[0])
    init.normal_(weight[2:4], seed=1)
    for part in weight.view(3, 2, 3).unbind(0)[2:]:
        init.ones_(part)
    assert weight[0].eq(0).all()
    assert weight[1].eq(7).all()
    assert weight[2:4].equal(init.normal_(torch.empty(2, 3), seed=1))
    assert weight[4:].eq(1).all()
    init.normal_(weight.data)
    init.normal_(weight.detach())


def test_a_parametrisation_that_is_a_view_passes() -> None:
    class Transposed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.t()

    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Transposed(), unsafe=True)
    init.ones_(layer.weight)
    assert layer.weight.eq(1).all()
