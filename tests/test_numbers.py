"""Numbers: every argument of a public function that is one, with every kind of value.

What is no number is a NumberTypeError, what is out of range a NumberRangeError; both name the argument
and the value. Each number that is one counts as the float or int that it is, whatever its type.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import runpy
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import (
    Fill,
    Moments,
    NumberRangeError,
    NumberTypeError,
    Plan,
    checkpoint,
    fans,
    init,
    laws,
    linear_moments,
    lsuv_,
    models,
    moments,
    moments_many,
    number,
    recipes,
    report,
    schedules,
    transfer_scale_,
)

NAN, INF = math.nan, math.inf
HUGE = 10**400  # beyond float64
FLOAT32 = number.FLOAT32_MAX

# --- values ----------------------------------------------------------------------------------------


class Value(NamedTuple):
    """A value, and which number it is; None if it is none."""

    given: Any
    is_: Any = None

    @property
    def whole(self) -> bool:
        """Whether its type is that of whole numbers."""
        return isinstance(self.is_, int) and not isinstance(self.given, (Fraction, Decimal))


class Two(IntEnum):
    TWO = 2


class Half:
    """A number of another package."""

    def __float__(self) -> float:
        return 0.5


NUMBERS = [
    *(Value(x, x) for x in (0.5, 1.0, 2.0, 0.0, -0.0, -1.0, 1e300, -1e300, 1e-300, NAN, INF, -INF)),
    *(Value(n, n) for n in (0, 1, 2, -1, 7, 2**64 - 1, 2**64, HUGE, -HUGE, 10**5000)),
    *(Value(t(0.5), 0.5) for t in (np.float16, np.float32, np.float64, np.longdouble, np.array)),
    *(Value(t(2), 2) for t in (np.int8, np.int64, np.uint64, np.array, torch.tensor, Two)),
    *(Value(t(NAN), NAN) for t in (np.float32, np.array, torch.tensor, Decimal)),
    *(Value(t(-1), -1) for t in (np.int32, torch.tensor)),
    *(Value(t("0.5"), 0.5) for t in (Fraction, Decimal)),
    Value(Fraction(HUGE, 3), HUGE // 3),
    Value(Decimal("1e400"), HUGE),
    Value(Decimal("sNaN"), HUGE),
    *(
        Value(torch.tensor(0.5, dtype=dtype), 0.5)
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    ),
    Value(torch.tensor(0.5, requires_grad=True), 0.5),
    Value(nn.Parameter(torch.tensor(0.5)), 0.5),
    Value(torch.tensor(2, dtype=torch.uint8), 2),
]
NOT_NUMBERS = [
    Value(given)
    for given in (
        *(True, False, np.bool_(True), np.array(True), torch.tensor(True)),
        *("0.5", "1", "nan", b"1", np.str_("1"), bytearray(b"1")),
        *(1j, 1 + 0j, np.complex64(1), np.array(1 + 0j), torch.tensor(1 + 0j)),
        *([0.5], (0.5,), {0.5}, {"a": 0.5}, (0, 1), slice(1), range(2), object, object()),
        *(torch.tensor([0.5]), torch.ones(1, 1), torch.ones(3), torch.empty(0), np.array([0.5])),
        *(torch.tensor(0.5, device="meta"), torch.float32, Half(), Ellipsis, NotImplemented),
    )
]


# --- arguments -------------------------------------------------------------------------------------


class Argument(NamedTuple):
    """An argument of a public function."""

    call: Callable[[Any], Any]
    """Calls it with a value, and returns what came of it."""
    takes: Callable[[Any], bool]
    """Whether it takes a number."""
    whole: bool = False
    """Whether its type has to be that of whole numbers."""
    optional: bool | None = False
    """Whether it may be None, which then is as if it were not given."""
    also: tuple[Any, ...] = ()
    """What is no number and may be given all the same."""
    named: str = ""
    """What a message calls it, if not by its name."""
    error: type[Exception] = NumberRangeError
    """Of what is out of range."""


def finite(x: Any) -> bool:
    return bool(-INF < x < INF)


def positive(x: Any) -> bool:
    return 2.0**-126 <= x <= FLOAT32


def in_float32(x: Any) -> bool:
    return abs(x) <= FLOAT32


def gain(x: Any) -> bool:
    return 0 <= x <= FLOAT32


def seed(x: Any) -> bool:
    return 0 <= x < 2**64


def at_least(least: int) -> Callable[[Any], bool]:
    return lambda n: least <= n < 2**63


def anything(x: Any) -> bool:
    return True


def of_init(name: str, argument: str, **others: Any) -> Callable[[Any], Tensor]:
    """Writes a tensor; if it is refused, nothing was written and nothing drawn."""

    def call(value: Any) -> Tensor:
        tensor = torch.full((4, 4, 3) if name in ("dirac_", "delta_orthogonal_") else (4, 4), 7.0)
        before, state = tensor.clone(), torch.get_rng_state()
        given = {"seed": 3, **others, argument: value}
        if name == "dirac_":
            del given["seed"]
        try:
            return getattr(init, name)(tensor, **given)
        except Exception:
            assert tensor.equal(before)
            assert torch.get_rng_state().equal(state)
            raise

    return call


RANDOM = {
    "uniform_": {"a": finite, "b": finite},
    "normal_": {"mean": in_float32, "std": gain},
    "trunc_normal_": {"mean": in_float32, "std": gain, "a": finite, "b": finite},
    "xavier_uniform_": {"gain": gain, "fan": positive},
    "xavier_normal_": {"gain": gain, "fan": positive},
    "kaiming_uniform_": {"a": in_float32, "fan": positive},
    "kaiming_normal_": {"a": in_float32, "fan": positive},
    "variance_scaling_": {"scale": gain, "fan": positive},
    "lecun_normal_": {"fan": positive},
    "lecun_uniform_": {"fan": positive},
    "orthogonal_": {"gain": in_float32},
    "delta_orthogonal_": {"gain": in_float32},
    "sparse_": {"sparsity": lambda x: 0 <= x <= 1, "std": gain},
}


def between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda x: low <= x <= high


# What a second number makes of the range of one.
PAIRS = {
    ("uniform_", "a"): (between(-FLOAT32, 1), {}),
    ("uniform_", "b"): (between(0, FLOAT32), {}),
    # Of means too far from [-2, 2] float32 has no tail, and it warns of others.
    ("trunc_normal_", "mean"): (between(-10.9, 10.9), {}),
    ("trunc_normal_", "a"): (lambda x: x <= 2, {}),
    ("trunc_normal_", "b"): (lambda x: x >= -2, {}),
}


def arguments_of_init() -> Iterator[tuple[str, Argument]]:
    for name, its in RANDOM.items():
        needed = {"sparsity": 0.5} if name == "sparse_" else {}
        for argument, takes in its.items():
            takes, others = PAIRS.get((name, argument), (takes, needed))
            key = f"fastinit.init.{name}:{argument}"
            if argument == "fan":
                for place in (0, 1):
                    call = of_init(name, "fan")

                    def of_pair(value: Any, call: Any = call, place: int = place) -> Tensor:
                        return call((value, 2.0) if place == 0 else (2.0, value))

                    yield f"{key}[{place}]", Argument(of_pair, takes, named=f"fan[{place}]")
                continue
            yield key, Argument(of_init(name, argument, **others), takes, optional=key in DEFAULTED)
        call = of_init(name, "seed", **needed)
        yield (
            f"fastinit.init.{name}:seed",
            Argument(call, seed, whole=True, optional=True),
        )


# None is torch's own default of a slope.
DEFAULTED = {"fastinit.init.kaiming_uniform_:a", "fastinit.init.kaiming_normal_:a"}


def chosen(x: Tensor) -> list[float]:
    return [float(value) for value in x.flatten()[:3]]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def lsuv(**given: Any) -> dict[str, float]:
    """The scales; a refusal leaves the model as it was."""
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    try:
        return lsuv_(model, x, **given).scales
    except Exception:
        assert all(v.equal(before[k]) for k, v in model.state_dict().items())
        raise


def transferred(factor: Any) -> Tensor:
    model = net()
    before = model[0].weight.clone()
    try:
        transfer_scale_(model[0], model[2], factor)
    except Exception:
        assert model[0].weight.equal(before)
        raise
    return model[0].weight.detach()


def monitored(value: Any) -> int:
    from fastinit.lightning import VarianceMonitor

    return VarianceMonitor(value).every_n_batches


def recorded(given: Any) -> Tensor:
    with fastinit.deferred(given):
        model = nn.Linear(4, 4)
    return fastinit.materialize_(model).weight.detach()


def planned(rule: Any, model: nn.Module | None = None, config: Any = None) -> Plan:
    return Plan.from_model(model or nn.Sequential(nn.Linear(4, 4)), rule, config=config)


def fc1() -> nn.Module:
    return nn.ModuleDict({"fc1": nn.Linear(4, 4, bias=False)})


def from_json(**fields: Any) -> Plan:
    """A plan of one parameter with other fields than it was saved with."""
    entry = {"name": "w", **json.loads(Plan({"w": Fill.normal()}).to_json())["parameters"][0]}
    return Plan.from_json(
        json.dumps({**json.loads(Plan({}).to_json()), "parameters": [{**entry, **fields}]})
    )


def laid_out(size: Any) -> int:
    return len(
        checkpoint.layout(
            net(), Plan.from_model(net(), recipes.torch_default), shard_size=size
        ).shards
    )


def written(tmp: Path, size: Any) -> int:
    plan = Plan.from_model(net(), recipes.torch_default)
    return len(checkpoint.write(net(), tmp, plan, shard_size=size).layout.shards)


def one_fill(name: str, place: int, others: tuple[float, ...]) -> Callable[[Any], Fill]:
    return lambda v: getattr(Fill, name)(*others[:place], v, *others[place + 1 :])


X = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
W = nn.Linear(3, 4).weight.detach()
FIXUP = {"layer.conv1.weight": nn.Linear(2, 2)}

ARGUMENTS: dict[str, Argument] = {
    **dict(arguments_of_init()),
    "fastinit.init.dirac_:groups": Argument(
        of_init("dirac_", "groups"), lambda n: n in (1, 2, 4), whole=True
    ),
    "fastinit.init.calculate_gain:param": Argument(
        lambda v: init.calculate_gain("leaky_relu", v), in_float32, optional=True
    ),
    # laws
    "fastinit.laws.uniform:a": Argument(lambda v: laws.uniform(v, 1.0), between(-FLOAT32, 1)),
    "fastinit.laws.uniform:b": Argument(lambda v: laws.uniform(0.0, v), between(0, FLOAT32)),
    "fastinit.laws.normal:mean": Argument(lambda v: laws.normal(v, 1.0), in_float32),
    "fastinit.laws.normal:std": Argument(lambda v: laws.normal(0.0, v), gain),
    "fastinit.laws.constant:value": Argument(laws.constant, anything),
}
for sigma in ("", "_by_sigma"):
    make = getattr(laws, f"truncated_normal{sigma}")
    key = f"fastinit.laws.truncated_normal{sigma}"
    ARGUMENTS |= {
        f"{key}:mean": Argument(
            lambda v, make=make: make(v, 1.0, -2.0, 2.0),
            in_float32 if sigma else between(-10.9, 10.9),
        ),
        f"{key}:std": Argument(lambda v, make=make: make(0.0, v, -2.0, 2.0), gain),
        f"{key}:a": Argument(lambda v, make=make: make(0.0, 1.0, v, 2.0), lambda x: x <= 2),
        f"{key}:b": Argument(lambda v, make=make: make(0.0, 1.0, -2.0, v), lambda x: x >= -2),
    }
for name, others, ranges in (
    ("uniform", (0.0, 1.0), {"a": between(-FLOAT32, 1), "b": between(0, FLOAT32)}),
    ("normal", (0.0, 1.0), {"mean": in_float32, "std": gain}),
    (
        "truncated_normal",
        (0.0, 1.0, -2.0, 2.0),
        {"mean": between(-10.9, 10.9), "std": gain, "a": lambda x: x <= 2, "b": lambda x: x >= -2},
    ),
    ("constant", (0.0,), {"value": anything}),
    ("orthogonal", (1.0,), {"gain": in_float32}),
    ("delta_orthogonal", (1.0,), {"gain": in_float32}),
    ("sparse", (0.5, 0.01), {"sparsity": between(0, 1), "std": gain}),
    ("dirac", (1.0,), {"groups": lambda x: positive(x) and x == int(x)}),
):
    for place, (argument, takes) in enumerate(ranges.items()):
        ARGUMENTS[f"fastinit.Fill.{name}:{argument}"] = Argument(
            one_fill(name, place, others), takes
        )

ARGUMENTS |= {
    "fastinit.Fill:parameters": Argument(lambda v: Fill("normal", (0.0, v)), gain, named="std"),
    "fastinit.Fill:scale": Argument(lambda v: Fill("constant", (0.0,), v), positive),
    "fastinit.Fill.scaled:factor": Argument(Fill.constant(0.0).scaled, positive),
    "fastinit.Fill.affine:factor": Argument(lambda v: Fill.constant(0.0).affine(v, 0.5), finite),
    "fastinit.Fill.affine:shift": Argument(lambda v: Fill.constant(0.0).affine(2.0, v), finite),
    "fastinit.Plan:seed": Argument(lambda v: Plan({}, seed=v), seed, whole=True),
    "fastinit.Plan:stream_version": Argument(
        lambda v: Plan({}, stream_version=v), lambda n: n == 1, whole=True
    ),
    "fastinit.Plan.from_model:seed": Argument(
        lambda v: Plan.from_model(net(), recipes.torch_default, v), seed, whole=True
    ),
    "fastinit.Plan.scaled:factors": Argument(
        lambda v: Plan({"w": Fill.constant(0.0)}).scaled({"w": v}), positive, named="factors['w']"
    ),
    # statistics
    "fastinit.moments:correction": Argument(lambda v: moments(X, v), finite),
    "fastinit.moments:dim": Argument(
        lambda v: moments(X, dim=v).mean,
        lambda n: -2 <= n < 2,
        whole=True,
        optional=True,
        error=IndexError,
    ),
    "fastinit.moments_many:correction": Argument(lambda v: moments_many([X, X], v)[1], finite),
    "fastinit.moments_many:dim": Argument(
        lambda v: moments_many([X, X], dim=v)[1].mean,
        lambda n: -2 <= n < 2,
        whole=True,
        optional=True,
        error=IndexError,
    ),
    "fastinit.Moments:correction": Argument(lambda v: Moments(moments(X).raw, v), finite),
    "fastinit.linear_moments:correction": Argument(lambda v: linear_moments(X, W, None, v), finite),
    # LSUV
    "fastinit.lsuv_:target_std": Argument(
        lambda v: lsuv(target_std=v), positive, also=({"a": 0.5}, object)
    ),
    "fastinit.lsuv_:target_std[name]": Argument(
        lambda v: lsuv(target_std={"2": v}), positive, named="target_std['2']"
    ),
    "fastinit.lsuv_:target_std(place)": Argument(
        lambda v: lsuv(target_std=lambda place: v if place == 1 else 1.0),
        positive,
        named="target_std(1)",
    ),
    "fastinit.lsuv_:tol": Argument(lambda v: lsuv(tol=v), lambda x: 0 < x < 1),
    "fastinit.lsuv_:max_iter": Argument(lambda v: lsuv(max_iter=v), at_least(1), whole=True),
    "fastinit.transfer_scale_:factor": Argument(transferred, positive),
    "fastinit.schedules.alternating:factor": Argument(
        lambda v: [schedules.alternating(v)(place) for place in range(3)], positive
    ),
    "fastinit.lightning.VarianceMonitor:every_n_batches": Argument(
        monitored, at_least(1), whole=True
    ),
    # models
    "fastinit.deferred:seed": Argument(recorded, seed, whole=True),
    "fastinit.models.build:seed": Argument(
        lambda v: models.build("torch.nn:ReLU", seed=v), seed, whole=True
    ),
    "fastinit.models.from_function:seed": Argument(
        lambda v: models.from_function("torch.nn:ReLU", seed=v), seed, whole=True
    ),
    "fastinit.checkpoint.layout:shard_size": Argument(
        laid_out,
        lambda n: n >= 1,
        whole=True,
        named="shard size",
        also=("0.5", "1", "nan", np.str_("1")),
    ),
    "fastinit.report.rates:size": Argument(
        lambda v: report.rates(checkpoint.Rates(1e9, 1e9), v), at_least(0), whole=True
    ),
    # recipes
    "fastinit.recipes.skipinit:value": Argument(
        lambda v: planned(recipes.skipinit(alphas="*.bias", value=v)), anything
    ),
    "fastinit.recipes.orthogonal:gain": Argument(
        lambda v: planned(recipes.orthogonal(gain=v)), in_float32, optional=True
    ),
    "fastinit.recipes.delta_orthogonal:gain": Argument(
        lambda v: planned(recipes.delta_orthogonal(gain=v)), in_float32, optional=True
    ),
    "fastinit.recipes.fixup:branches": Argument(
        lambda v: planned(
            recipes.fixup(v, branch="*fc1*", last="*fc2*", classifier="*fc3*"),
            nn.ModuleDict({f"fc{i}": nn.Linear(2, 2) for i in (1, 2, 3)}),
            {"branches": 3},
        ),
        at_least(1),
        whole=True,
        optional=True,
    ),
    "fastinit.recipes.fixup:layers_per_branch": Argument(
        lambda v: recipes.fixup(1, v).__name__, at_least(2), whole=True
    ),
    "fastinit.recipes.mup:table": Argument(
        lambda v: planned(recipes.mup(net(), recipes.torch_default, table=v), net()),
        lambda n: n in (3, 8),
        whole=True,
    ),
    "fastinit.recipes.mup_learning_rates:table": Argument(
        lambda v: recipes.mup_learning_rates(net(), net(), table=v),
        lambda n: n in (3, 8),
        whole=True,
    ),
}
for side, decoder in (("encoder_layers", False), ("decoder_layers", True)):
    for name in ("deepnorm", "t_fixup"):
        ARGUMENTS[f"fastinit.recipes.{name}:{side}"] = Argument(
            lambda v, name=name, side=side: planned(
                getattr(recipes, name)(**{side: v, _other(side): 2}), fc1()
            ),
            at_least(0),
            whole=True,
            optional=True,
        )
    ARGUMENTS[f"fastinit.recipes.deepnorm_constants:{side}"] = Argument(
        lambda v, side=side, decoder=decoder: recipes.deepnorm_constants(
            **{side: v, _other(side): 2}, decoder=decoder
        ),
        at_least(1),
        whole=True,
        optional=False,
    )


def _other(side: str) -> str:
    return "decoder_layers" if side == "encoder_layers" else "encoder_layers"


for setting, rule in (
    ("initializer_range", recipes.llama),
    ("initializer_range", recipes.gpt2),
    ("initializer_factor", recipes.t5),
):
    ARGUMENTS[f"{rule.__name__}'s config:{setting}"] = Argument(
        lambda v, setting=setting, rule=rule: rule(
            "shared.weight", nn.Embedding(2, 2), torch.Size([2, 2]), {setting: v}
        ),
        gain,
        optional=True,
        named=setting,
    )
for setting, rule, name in (
    ("n_layer", recipes.gpt2, "h.0.c_proj.weight"),
    ("hidden_size", recipes.neox, "h.weight"),
    ("num_hidden_layers", recipes.deepnorm(), "fc1.weight"),
    ("d_model", recipes.t5, "h.k.weight"),
):
    ARGUMENTS[f"{rule.__name__}'s config:{setting}"] = Argument(
        lambda v, setting=setting, rule=rule, name=name: rule(
            name, nn.Linear(2, 2), torch.Size([2, 2]), {setting: v}
        ),
        at_least(1),
        whole=True,
        optional=None,  # the recipe then says that the setting is not there
        named=setting,
    )


def is_taken(argument: Argument, value: Value) -> bool | None:
    """Whether it is one that the argument takes; None if it is of a wrong type."""
    if value.is_ is None or (argument.whole and not value.whole):
        return None
    if not argument.whole and isinstance(value.is_, int) and abs(value.is_) >= HUGE // 3:
        return False  # no float64
    return argument.takes(value.is_)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    return repr(a) == repr(b)


def assert_named(error: pytest.ExceptionInfo[Exception], key: str, argument: Argument) -> None:
    named = argument.named or key.partition(":")[2]
    assert re.search(rf"(?<!\w){re.escape(named)}(?!\w)", str(error.value)), str(error.value)
    assert "but got" in str(error.value) or "match" in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
@pytest.mark.parametrize("key", ARGUMENTS)
def test_every_number(key: str) -> None:
    """Taken as the float or int that it is, or refused as what it is."""
    argument = ARGUMENTS[key]
    if "lightning" in key:
        pytest.importorskip("lightning.pytorch")
    for value in (*NUMBERS, *NOT_NUMBERS):
        if any(type(value.given) is type(a) and value.given == a for a in argument.also):
            continue
        taken = is_taken(argument, value)
        said = f"{key} = {number.said(value.given)}"
        if taken:
            plain = int(value.is_) if argument.whole else float(value.is_)
            assert same(argument.call(value.given), argument.call(plain)), said
            continue
        wanted = NumberTypeError if taken is None else argument.error
        try:
            with pytest.raises(wanted) as error:
                argument.call(value.given)
        except BaseException as other:
            raise AssertionError(f"{said}: {type(other).__name__}: {other}") from other
        assert_named(error, key, argument)
    if argument.optional:
        argument.call(None)
    elif argument.optional is False:
        with pytest.raises(NumberTypeError) as error:
            argument.call(None)
        assert_named(error, key, argument)


def test_shards_on_disk(tmp_path: Path) -> None:
    for size in (True, NAN, 0, "5 apples", 0.5, [5]):
        with pytest.raises((NumberTypeError, NumberRangeError), match=r"shard.size must be"):
            written(tmp_path / "none", size)
    assert not (tmp_path / "none").exists()
    assert written(tmp_path / "one", np.int64(10**9)) == written(tmp_path / "two", "1GB") == 1


@pytest.mark.parametrize("field", ["mean", "std", "scale"])
@pytest.mark.parametrize("value", [True, "0.5", [1], {}, None, HUGE, "Infinity"])
def test_numbers_in_json(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"parameter w: no Fill .*{field}"):
        from_json(**{field: value})


@pytest.mark.parametrize("seed", [True, 1.5, "1", None, -1, HUGE])
def test_a_seed_in_json(seed: Any) -> None:
    document = json.loads(Plan({}).to_json()) | {"seed": seed}
    with pytest.raises(ValueError, match="seed must be"):
        Plan.from_json(json.dumps(document))


# --- errors ----------------------------------------------------------------------------------------


def test_errors_are_what_torch_raises_for_either() -> None:
    assert set(NumberRangeError.__bases__) == {ValueError, RuntimeError}
    assert set(NumberTypeError.__bases__) == {TypeError, ValueError}


def test_a_product_that_leaves_the_floats() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    with pytest.raises(
        NumberRangeError, match=r"the product of target_std\(0\) to target_std\(2\)"
    ):
        lsuv_(model, torch.ones(8, 4) + torch.eye(8, 4), target_std=lambda place: 1e-37)


@pytest.mark.parametrize(
    ("std", "fullgraph"),
    [
        *((std, True) for std in (0.5, 2, np.float64(0.5), Fraction(1, 2))),
        # Their value is in memory: dynamo breaks the graph to read it.
        *((std, False) for std in (np.float32(0.5), torch.tensor(0.5))),
    ],
)
def test_numbers_in_compiled_code(std: Any, fullgraph: bool) -> None:
    def draw(tensor: Tensor, std: Any) -> Tensor:
        return init.normal_(tensor, 0.0, std, seed=1) + 1

    torch._dynamo.reset()
    compiled = torch.compile(draw, backend="eager", fullgraph=fullgraph)
    assert compiled(torch.empty(9), std).equal(draw(torch.empty(9), float(std)))
    with pytest.raises(NumberTypeError, match="std must be a number, but got"):
        torch.compile(draw, backend="eager")(torch.empty(9), "0.5")


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_sigma_bounds_are_converted_first(std: float) -> None:
    """Bounds are multiples; wherever the mean is, the law is the same one, moved."""
    made = init.trunc_normal_(torch.empty(3000), 100.0, std, sigma=True, seed=1)
    assert made.min() >= 100 - 2 * std
    assert made.max() <= 100 + 2 * std
    law = laws.truncated_normal_by_sigma(100.0, std, -INF, 2.0)
    assert law == laws.truncated_normal(100.0, std, -INF, 100 + 2 * std)
    if std:
        assert made.std().item() == pytest.approx(std * fans.truncated_std(2.0), rel=0.1)
    with pytest.raises(NumberRangeError, match=r"a=2\.0, b=-2\.0"):
        init.trunc_normal_(torch.empty(3), 100.0, std, 2.0, -2.0, sigma=True)


# --- no argument is forgotten ----------------------------------------------------------------------

PAGES = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "reference.py"))["PAGES"]
"""The modules that are public."""

A_NUMBER = re.compile(r"\b(int|float|Fans|Schedule|Shapes)\b")

NOT_ASKED = {
    "fastinit.backends": "backends see what was checked",
    "fastinit.reference": "the specification sees what was checked",
    "fastinit.number": "tested by all of them",
    "fastinit.plots": "no numbers but those of results",
}
"""Modules, and why."""

RESULTS = {
    *("Watched", "Measured", "LSUVResult", "Group", "Difference", "Timing"),
    *("Layout", "Written", "Rates", "Law", "Params", "Window", "Request"),
}
"""Classes that functions make, and callers do not."""

ELSEWHERE = {
    "fastinit.init.constant_:val": "torch's own fill_, any number of the tensor's dtype",
    "fastinit.init.sparse_:std": "asked as an argument of init",
    "fastinit.checkpoint.write:shard_size": "test_shards_on_disk",
    "fastinit.checkpoint.measure_rates:size": "of a sample, by the command line",
    "fastinit.models.from_config:seed": "needs transformers; hands it to deferred",
    "fastinit.ops.fill_:seed": "asked by fastinit.init",
    "fastinit.ops.fill_:stream": "made by keys.stream_id",
    "fastinit.fans.fans_of:shape": "a tensor's shape",
    "fastinit.fans.truncated_std:reach": "a constant of the laws",
    "fastinit.fans.calculate_gain:param": "is fastinit.init's",
    "fastinit.fans.check_fans:fan": "asked by fastinit.init",
    "fastinit.fans.kaiming_std:a": "asked by fastinit.init",
    "fastinit.fans.kaiming_std:fans": "from shapes, or checked",
    "fastinit.fans.xavier_std:gain": "asked by fastinit.init",
    "fastinit.fans.xavier_std:fans": "from shapes, or checked",
    "fastinit.fans.variance_scaling:fans": "from shapes, or checked",
    "fastinit.fans.variance_scaling:scale": "asked by fastinit.init",
    "fastinit.fans.variance_scaling_std:fans": "from shapes, or checked",
    "fastinit.fans.variance_scaling_std:scale": "asked by fastinit.init",
    "fastinit.fans.uniform_of_std:std": "the law checks it",
    "fastinit.recipes.mup_learning_rates:base": "shapes",
    "fastinit.report.comparison:ratios": "times that the command line took",
}
"""Arguments, and why they are not in the table; the values of laws are numbers already."""

ARITHMETIC = {"normal_tail", "float32", "nearest", "round_up", "round_down", "below"}


def public() -> Iterator[tuple[str, Any]]:
    """(name by which it is asked, function or method) of every public module."""
    for page in (*PAGES, "fastinit.report"):
        if page in NOT_ASKED:
            continue
        try:
            module = importlib.import_module(page)
        except ImportError:
            continue
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in names:
            thing = getattr(module, name)
            if name in RESULTS | ARITHMETIC or inspect.ismodule(thing):
                continue
            home = getattr(thing, "__module__", "")
            if "__all__" not in vars(module) and home != page:
                continue
            is_top = getattr(fastinit, name, None) is thing and page != "fastinit.init"
            own = f"fastinit.{name}" if is_top else f"{page}.{name}"
            if inspect.isclass(thing):
                if issubclass(thing, BaseException):
                    continue
                yield own, thing
                for key, member in vars(thing).items():
                    if key[0] != "_" and (
                        inspect.isfunction(member) or isinstance(member, classmethod)
                    ):
                        yield f"{own}.{key}", getattr(thing, key)
            elif inspect.isroutine(thing):
                yield own, thing


def test_no_number_is_forgotten() -> None:
    """A public function with a new argument that is a number has to ask it here."""
    asked = {re.sub(r"[\[(]\w+[\])]$", "", key) for key in ARGUMENTS} | set(ELSEWHERE)
    found = set()
    for name, function in public():
        for argument, parameter in inspect.signature(function).parameters.items():
            if A_NUMBER.search(str(parameter.annotation)):
                found.add(f"{name}:{argument}")
    assert len(found) > 60
    assert found - asked == set()
    gone = {key for key in asked - found if "config" not in key and "lightning" not in key}
    assert gone == set()
