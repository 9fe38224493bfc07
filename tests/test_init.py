"""fastinit.init against torch.nn.init: the same calls, the right laws, the same bits everywhere.

Distribution tests reject at level 1e-4 each, with fixed seeds: they cannot fail by chance once they
have passed.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from same_bits import assert_values
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastinit import init

LEVEL = 1e-4
FUNCTIONS = nn.init.__all__
ALIASES = [n for n in FUNCTIONS if not n.endswith("_") and n != "calculate_gain"]
WRITERS = [n for n in FUNCTIONS if n.endswith("_")]
BEYOND = ["variance_scaling_", "lecun_normal_", "lecun_uniform_", "delta_orthogonal_"]
RANDOM = [
    n for n in WRITERS + BEYOND if n not in {"constant_", "ones_", "zeros_", "eye_", "dirac_"}
]
WITH_FAN = ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", *BEYOND[:3]]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64]


def call(function: str, tensor: Tensor, /, **more: Any) -> Tensor:
    """The function with the arguments that it requires."""
    required = {"constant": {"val": 0.5}, "sparse": {"sparsity": 0.5}}.get(function.rstrip("_"), {})
    result: Tensor = getattr(init, function)(tensor, **required, **more)
    return result


def blank(name: str, **options: Any) -> Tensor:
    return torch.full((6, 4, 1) if "dirac" in name or "delta" in name else (6, 4), 7.0, **options)


# --- as torch ------------------------------------------------------------------------------------


def test_every_public_name_of_torch_is_here() -> None:
    assert set(FUNCTIONS) <= set(init.__all__)


@pytest.mark.parametrize("name", WRITERS + BEYOND)
def test_returns_the_tensor_and_keeps_requires_grad(name: str) -> None:
    for requires_grad in (True, False):
        w = nn.Parameter(blank(name), requires_grad)
        version = w._version
        assert call(name, w) is w
        assert w.requires_grad is requires_grad
        assert w.grad_fn is None
        assert w._version > version
        assert not w.eq(7).all()


@pytest.mark.parametrize("name", ["zeros_", "ones_", "constant_", "eye_", "dirac_"])
@pytest.mark.parametrize("mode", [TorchFunctionMode, TorchDispatchMode])
def test_a_mode_is_shown_what_torch_writes(name: str, mode: type[Any]) -> None:
    shown = []

    class Shown(mode):  # type: ignore[misc]
        def seen(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            shown.append(func.__name__.partition(".")[0])
            return func(*args, **(kwargs or {}))

        __torch_function__ = __torch_dispatch__ = seen

    w = nn.Parameter(blank(name))
    with Shown():
        call(name, w)
    assert any(write in shown for write in ("zero_", "fill_", "constant_", "eye"))
    assert not w.eq(7).any()


@pytest.mark.parametrize("name", ALIASES)
def test_deprecated_names(name: str) -> None:
    w = blank(name)
    torch.manual_seed(1)
    with pytest.warns(FutureWarning) as caught:
        result = call(name, w)
    assert result is w
    assert str(caught[0].message) == (
        f"`nn.init.{name}` is now deprecated in favor of `nn.init.{name}_`."
    )
    assert caught[0].filename == __file__
    torch.manual_seed(1)
    assert_values(w, call(name + "_", blank(name)), name)
    assert getattr(init, name).__name__ == getattr(torch.nn.init, name).__name__


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (0, 3)])
def test_eye_is_torchs(shape: tuple[int, int], dtype: torch.dtype) -> None:
    expected = torch.nn.init.eye_(torch.empty(shape, dtype=dtype))
    assert init.eye_(torch.empty(shape, dtype=dtype)).equal(expected)
    assert init.eye_(torch.empty(shape[::-1], dtype=dtype).t()).equal(expected)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 2, 3), (6, 8, 4, 5), (6, 1, 2, 3, 4), (0, 2, 3)])
def test_dirac_is_torchs(shape: tuple[int, ...], groups: int) -> None:
    expected = torch.nn.init.dirac_(torch.empty(shape), groups)
    assert init.dirac_(torch.empty(shape), groups).equal(expected)
    assert init.dirac_(torch.empty(shape[::-1]).permute(*range(len(shape))[::-1]), groups).equal(
        expected
    )


@pytest.mark.parametrize("value", [0.1, -3, math.inf, math.nan, torch.tensor(0.1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_constants_are_torchs(dtype: torch.dtype, value: float) -> None:
    # Exact in every dtype: 0.1 in float64 is not float32's.
    ours = init.constant_(torch.empty(5, dtype=dtype), value)
    theirs = torch.nn.init.constant_(torch.empty(5, dtype=dtype), value)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_constants_of_other_dtypes() -> None:
    assert init.ones_(torch.empty(3, dtype=torch.int32)).tolist() == [1, 1, 1]
    assert init.zeros_(torch.ones(3, dtype=torch.bool)).tolist() == [False] * 3
    assert init.constant_(torch.empty(1, dtype=torch.complex64), 1j).item() == 1j
    # Elements that share memory are no trouble for one value, and torch writes them too.
    assert init.ones_(torch.zeros(1).expand(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_kaiming_of_no_elements_warns_before_all_else(name: str) -> None:
    w = torch.empty(0)
    with pytest.warns(
        UserWarning, match="^Initializing zero-element tensors is a no-op$"
    ) as caught:
        assert getattr(init, name)(w, mode="nonsense") is w
    assert caught[0].filename == __file__


def test_trunc_normal_far_from_the_mean_warns() -> None:
    with pytest.warns(UserWarning, match=r"^mean is more than 2 std from \[a, b\]") as caught:
        w = init.trunc_normal_(torch.empty(1000), 0.0, 1.0, 2.5, 3.0, seed=1)
    assert caught[0].filename == __file__
    assert 2.5 <= w.min() <= w.max() <= 3.0
    init.trunc_normal_(torch.empty(2, device="meta"), 0.0, 1.0, 2.5, 3.0)  # as torch: silent


@pytest.mark.parametrize("name", RANDOM)
def test_meta_and_empty_tensors_draw_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    w = blank(name, device="meta")
    assert call(name, w, generator=generator) is w
    if not name.startswith("kaiming"):  # which warns
        empty = torch.empty((4, 0, 1) if "delta" in name else (4, 0))
        assert call(name, empty, generator=generator) is empty
    assert generator.get_state().equal(state)


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_"])
def test_xavier_of_no_elements(name: str) -> None:
    assert getattr(init, name)(torch.empty(0, 0)).shape == (0, 0)


@pytest.mark.parametrize("name", ["uniform_", "normal_", "constant_", "kaiming_uniform_"])
def test_subclasses_are_asked_first(name: str) -> None:
    seen = []

    class Own(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return None

    call(name, torch.empty(2, 2).as_subclass(Own))
    assert seen == [getattr(init, name)]


# --- seeds, names, generators --------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_reproducible(name: str) -> None:
    torch.manual_seed(42)
    first, second = call(name, blank(name)), call(name, blank(name))
    assert not first.allclose(second, atol=1e-3)
    torch.manual_seed(42)
    assert_values(call(name, blank(name)), first, name)
    generator = torch.Generator().manual_seed(42)
    assert_values(call(name, blank(name), generator=generator), first, name)
    assert_values(call(name, blank(name), generator=generator), second, name)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_and_name_tell_the_values(name: str) -> None:
    state = torch.get_rng_state()
    w = call(name, blank(name), seed=1, name="layer.weight")
    assert_values(call(name, blank(name), seed=1, name="layer.weight"), w, name)
    assert torch.get_rng_state().equal(state)
    for other in ({"seed": 2, "name": "layer.weight"}, {"seed": 1, "name": "b"}, {"seed": 1}):
        assert not w.allclose(call(name, blank(name), **other), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RANDOM)
def test_strides_do_not_matter(name: str, dtype: torch.dtype) -> None:
    plain = call(name, blank(name, dtype=dtype), seed=5)
    shape = plain.shape
    turned = torch.empty(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])
    sliced = torch.empty(12, 8, *shape[2:], dtype=dtype)[::2, 1:5]
    for w in (turned, sliced):
        assert_values(call(name, w, seed=5), plain, name)


@pytest.mark.parametrize("name", [n for n in RANDOM if "orthogonal" not in n])
def test_half_types_are_float32_rounded(name: str) -> None:
    full = call(name, blank(name), seed=5)
    assert call(name, blank(name, dtype=torch.float64), seed=5).equal(full.double())
    half = call(name, blank(name, dtype=torch.bfloat16), seed=5).float()
    # One rounding: half a unit of bfloat16's 8 bits; a whole one next to a bound.
    torch.testing.assert_close(half, full, rtol=2**-8, atol=0)


# --- laws ----------------------------------------------------------------------------------------

N = 40_000
FAN_IN, FAN_OUT = 200, 200


def ks(values: Tensor, law: Any) -> float:
    return float(stats.kstest(values.flatten().double().numpy(), law.cdf).pvalue)


def uniform_of(std: float) -> Any:
    return stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std)


def truncated_of(std: float) -> Any:
    return stats.truncnorm(-2, 2, 0, std / stats.truncnorm(-2, 2).std())


GAIN = math.sqrt(2 / (1 + 0.2**2))
LAWS: list[tuple[str, dict[str, Any], Any]] = [
    ("uniform_", {}, stats.uniform()),
    ("uniform_", {"a": -3.0, "b": 1.0}, stats.uniform(-3, 4)),
    ("normal_", {}, stats.norm()),
    ("normal_", {"mean": 2.0, "std": 0.3}, stats.norm(2, 0.3)),
    ("trunc_normal_", {}, stats.truncnorm(-2, 2)),
    ("trunc_normal_", {"std": 0.02}, stats.truncnorm(-100, 100, 0, 0.02)),
    (
        "trunc_normal_",
        {"mean": 1.0, "std": 2.0, "a": 0.0, "b": math.inf},
        stats.truncnorm(-0.5, math.inf, 1, 2),
    ),
    (
        "trunc_normal_",
        {"mean": 1.0, "std": 0.1, "a": -1, "b": 2, "sigma": True},
        stats.truncnorm(-1, 2, 1, 0.1),
    ),
    ("xavier_uniform_", {"gain": 2.0}, uniform_of(2 * math.sqrt(2 / 400))),
    ("xavier_normal_", {"gain": 2.0}, stats.norm(0, 2 * math.sqrt(2 / 400))),
    ("xavier_normal_", {"fan": (10, 40)}, stats.norm(0, 0.2)),
    ("kaiming_uniform_", {"a": 0.2}, uniform_of(GAIN / math.sqrt(200))),
    ("kaiming_normal_", {"nonlinearity": "relu"}, stats.norm(0, 0.1)),
    (
        "kaiming_normal_",
        {"mode": "fan_out", "nonlinearity": "linear", "fan": (10, 25)},
        stats.norm(0, 0.2),
    ),
    ("variance_scaling_", {}, truncated_of(math.sqrt(1 / 200))),
    (
        "variance_scaling_",
        {"scale": 3.0, "mode": "fan_geo_avg", "distribution": "normal", "fan": (3, 27)},
        stats.norm(0, math.sqrt(3 / 9)),
    ),
    (
        "variance_scaling_",
        {"mode": "fan_avg", "distribution": "uniform", "fan": (3, 5)},
        uniform_of(0.5),
    ),
    ("lecun_normal_", {"fan": (4, 1)}, truncated_of(0.5)),
    ("lecun_uniform_", {"fan": (4, 1)}, uniform_of(0.5)),
]


@pytest.mark.parametrize(("name", "arguments", "law"), LAWS)
def test_law(name: str, arguments: dict[str, Any], law: Any) -> None:
    w = getattr(init, name)(torch.empty(FAN_OUT, FAN_IN), **arguments, seed=11)
    assert ks(w, law) > LEVEL


@pytest.mark.parametrize("name", WITH_FAN)
def test_fan_stands_for_the_shape(name: str) -> None:
    whole = getattr(init, name)(torch.empty(8, 6), seed=1)
    assert getattr(init, name)(torch.empty(48), seed=1, fan=(6, 8)).equal(whole.flatten())


@pytest.mark.parametrize(
    ("name", "variance"), [("normal_", 1.0), ("uniform_", 1 / 12), ("xavier_uniform_", 1 / 200)]
)
def test_complex_values_have_the_variance_asked_for(name: str, variance: float) -> None:
    # 40,000 values: the variance's standard deviation is below 1% of it (kurtosis at most 3);
    # five of those.
    w = getattr(init, name)(torch.empty(FAN_OUT, FAN_IN, dtype=torch.complex64), seed=1)
    assert w.var().item() == pytest.approx(variance, rel=0.05)
    assert w.real.var().item() == pytest.approx(w.imag.var().item(), rel=0.05)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (1, 4), (30, 1)])
def test_sparse(shape: tuple[int, int], sparsity: float) -> None:
    w = init.sparse_(torch.empty(shape), sparsity, std=0.3, seed=1)
    assert (w == 0).sum(0).eq(math.ceil(sparsity * shape[0])).all()
    dense = init.normal_(torch.empty(shape), 0.0, 0.3, seed=1)
    assert w.equal(torch.where(w == 0, 0.0, dense))


def test_sparse_zeros_are_everywhere_alike() -> None:
    w = init.sparse_(torch.empty(8, 8000), 0.25, seed=1)
    assert stats.chisquare((w == 0).sum(1)).pvalue > LEVEL
    pairs = [((w[i] == 0) & (w[j] == 0)).sum().item() for i in range(8) for j in range(i)]
    assert stats.chisquare(pairs).pvalue > LEVEL


# --- under torch's machinery ---------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS + BEYOND)
def test_fake_tensors(name: str) -> None:
    with FakeTensorMode():
        w = blank(name)
        assert call(name, w) is w


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("normal_", {}),
        ("normal_", {"seed": 3, "name": "layer.weight"}),
        ("uniform_", {"seed": 3}),
        ("trunc_normal_", {"seed": 3}),
        ("kaiming_uniform_", {"seed": 3}),
        ("xavier_normal_", {"seed": 3, "fan": (3, 4)}),
        ("variance_scaling_", {"seed": 3}),
        ("orthogonal_", {"seed": 3}),
        ("sparse_", {"seed": 3, "name": "layer.weight"}),
        ("eye_", {}),
        ("zeros_", {}),
    ],
)
def test_compiles_whole(name: str, more: dict[str, Any]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda w: call(name, w, **more), fullgraph=True, backend="eager")
    torch.manual_seed(0)
    w = compiled(blank(name))
    torch.manual_seed(0)
    assert_values(call(name, blank(name), **more), w, name)


def test_signatures_of_what_is_beyond_torch() -> None:
    for name in RANDOM:
        parameters = inspect.signature(getattr(init, name)).parameters
        keys = ["seed", "name"] + (["fan"] if name in WITH_FAN else [])
        assert all(parameters[k].kind is inspect.Parameter.KEYWORD_ONLY for k in keys)
        assert "generator" in parameters
