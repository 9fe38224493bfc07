"""Every argument of a public function that is a number, and how it is given (test_number.py)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numbers_values import (
    FLOAT32,
    Argument,
    anything,
    at_least,
    between,
    finite,
    gain,
    in_float32,
    positive,
    seed,
)
from torch import Tensor, nn

import fastinit
from fastinit import (
    Blocks,
    ChannelMoments,
    Fill,
    Moments,
    Part,
    Plan,
    fill_missing_,
    init,
    linear_moments,
    lsuv_,
    moments,
    moments_many,
    recipes,
    transfer_scale_,
)
from fastinit.checkpoint import writing as checkpoint
from fastinit.command import models, report
from fastinit.stream import laws
from fastinit.variance.lsuv import schedules


def in_range(low: int, high: int) -> Callable[[Any], bool]:
    return lambda n: low <= n < high


def of_init(name: str, argument: str, **others: Any) -> Callable[[Any], Tensor]:
    """Writes a tensor; if it is refused, nothing was written and nothing drawn."""

    def call(value: Any) -> Tensor:
        tensor = torch.full((4, 4, 3) if name in ("dirac_", "delta_orthogonal_") else (4, 4), 7.0)
        if argument == "scale" and "scale" not in RANDOM[name]:
            tensor = tensor.to(torch.float8_e5m2)
        before, state = tensor.clone(), torch.get_rng_state()
        given = {"seed": 3, **others, argument: value}
        if name == "dirac_":
            del given["seed"]
        try:
            return getattr(init, name)(tensor, **given)
        except Exception:
            assert tensor.view(torch.uint8).equal(before.view(torch.uint8))
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
        if "scale" in inspect.signature(getattr(init, name)).parameters and "scale" not in its:
            call = of_init(name, "scale")  # what a float8 tensor's values are divided by
            yield f"fastinit.init.{name}:scale", Argument(call, positive, optional=True)
        call = of_init(name, "seed", **needed)
        yield (
            f"fastinit.init.{name}:seed",
            Argument(call, seed, whole=True, optional=True),
        )


# None is torch's own default of a slope.
DEFAULTED = {"fastinit.init.kaiming_uniform_:a", "fastinit.init.kaiming_normal_:a"}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def told_steps(every: Any, start: Any = 0) -> list[int]:
    """The steps of which a watch tells."""
    model, told = nn.Linear(2, 2), list[int]()
    if every is None:
        fastinit.watch(model, every=None)
        return told
    with fastinit.watch(
        model, every=every, start=start, to=lambda measured: told.append(measured.step)
    ) as watched:
        for _ in range(3):
            model(torch.ones(1, 2))
            watched.step()
    return told


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


def monitored(framework: str, value: Any) -> int:
    module = importlib.import_module(f"fastinit.frameworks.{framework}")
    every: int = module.VarianceMonitor(value).every
    return every


def accelerated(value: Any) -> int:
    from accelerate import Accelerator

    from fastinit.frameworks.accelerate import watch

    model = net()
    w = watch(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), 0.1), every=value)
    return w._steps.every


def recorded(given: Any) -> Tensor:
    with fastinit.deferred(given):
        model = nn.Linear(4, 4)
    return fastinit.materialize_(model).weight.detach()


def planned(rule: Any, model: nn.Module | None = None, config: Any = None) -> Plan:
    return Plan.from_model(model or nn.Sequential(nn.Linear(4, 4)), rule, config=config)


def fc1() -> nn.Module:
    return nn.ModuleDict({"fc1": nn.Linear(4, 4, bias=False)})


class Asked(Exception):
    """The width that a model is asked for."""


def coordinates(**given: Any) -> int:
    """What a check whose numbers are all taken asks for first."""

    def build(width: int) -> nn.Module:
        raise Asked(width)

    given = {"widths": [3, 2**62, 5], "batch": X, **given}
    try:
        fastinit.coord_check(build, **given)
    except Asked as asked:
        return asked.args[0]
    raise AssertionError("it did not ask for a model")


def blocks() -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})


def laid_out(size: Any) -> int:
    return len(
        checkpoint.layout(
            net(), Plan.from_model(net(), recipes.torch_default), shard_size=size
        ).shards
    )


def one_fill(name: str, place: int, others: tuple[float, ...]) -> Callable[[Any], Fill]:
    return lambda v: getattr(Fill, name)(*others[:place], v, *others[place + 1 :])


X = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
W = nn.Linear(3, 4).weight.detach()

ARGUMENTS: dict[str, Argument] = {
    **dict(arguments_of_init()),
    "fastinit.init.dirac_:groups": Argument(
        of_init("dirac_", "groups"), lambda n: n in (1, 2, 4), whole=True
    ),
    "fastinit.init.calculate_gain:param": Argument(
        lambda v: init.calculate_gain("leaky_relu", v), in_float32, optional=True
    ),
    # laws
    "fastinit.stream.laws.uniform:a": Argument(
        lambda v: laws.uniform(v, 1.0), between(-FLOAT32, 1)
    ),
    "fastinit.stream.laws.uniform:b": Argument(lambda v: laws.uniform(0.0, v), between(0, FLOAT32)),
    "fastinit.stream.laws.normal:mean": Argument(lambda v: laws.normal(v, 1.0), in_float32),
    "fastinit.stream.laws.normal:std": Argument(lambda v: laws.normal(0.0, v), gain),
    "fastinit.stream.laws.constant:value": Argument(laws.constant, anything),
}
for sigma in ("", "_by_sigma"):
    make = getattr(laws, f"truncated_normal{sigma}")
    key = f"fastinit.stream.laws.truncated_normal{sigma}"
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
    (
        "arange",
        (0.0, 1.0, -1.0),
        {"start": finite, "step": finite, "dim": lambda x: finite(x) and x == int(x)},
    ),
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
    "fastinit.Fill.then:arguments": Argument(
        lambda v: Fill.normal().then("add", v), finite, named="term"
    ),
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
    # parts of a parameter of 12 x 6
    "fastinit.Part:shape": Argument(
        lambda v: Part((v, 6)).shape, at_least(0), whole=True, named="shape[0]"
    ),
    **{
        f"fastinit.Part.{name}:dim": Argument(call, in_range(-2, 2), whole=True, error=IndexError)
        for name, call in {
            "cut": lambda v: Part((12, 6)).cut(v, [(0, 1)]),
            "chunk": lambda v: Part((12, 6)).chunk(v, 2, 0),
            "split": lambda v: Part((12, 6)).split(v, 2, 0),
            "select": lambda v: Part((12, 6)).select(v, 0),
        }.items()
    },
    "fastinit.Part.chunk:ranks": Argument(
        lambda v: Part((12, 6)).chunk(0, v, 0), at_least(1), whole=True
    ),
    "fastinit.Part.chunk:rank": Argument(
        lambda v: Part((12, 6)).chunk(0, 2, v), in_range(0, 2), whole=True
    ),
    "fastinit.Part.split:ranks": Argument(
        lambda v: Part((12, 6)).split(0, v, 0),
        lambda n: n in (1, 2, 3, 4, 6, 12),
        whole=True,
    ),
    "fastinit.Part.split:rank": Argument(
        lambda v: Part((12, 6)).split(0, 2, v), in_range(0, 2), whole=True
    ),
    "fastinit.Part.split:stride": Argument(
        lambda v: Part((12, 6)).split(0, 2, 0, v),
        lambda n: n in (1, 2, 3, 6),
        whole=True,
    ),
    "fastinit.Part.select:index": Argument(
        lambda v: Part((12, 6)).select(0, v),
        in_range(0, 12),
        whole=True,
    ),
    "fastinit.stream.laws.scaled:scale": Argument(
        lambda v: laws.scaled(laws.normal(), v).scale, positive
    ),
    **{
        f"fastinit.Blocks{of}:fixed_scale": Argument(
            call, lambda x: 2.0**-120 <= x <= 2.0**117, optional=True
        )
        for of, call in {
            "": lambda v: replace(Blocks.empty((1, 16), "nvfp4"), fixed_scale=v).fixed_scale,
            ".empty": lambda v: Blocks.empty((1, 16), "nvfp4", fixed_scale=v).fixed_scale,
        }.items()
    },
    "fastinit.Blocks.empty:shape": Argument(
        lambda v: Blocks.empty((v, 32), "mxfp4").shape,
        lambda n: 0 <= n < 100,
        whole=True,
        named="shape[0]",
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
    "fastinit.ChannelMoments:correction": Argument(
        lambda v: ChannelMoments(moments(X, dim=1).raw, v), finite
    ),
    "fastinit.ChannelMoments:dim": Argument(
        lambda v: ChannelMoments(moments(X, dim=1).raw, dim=v).raw, lambda n: True, whole=True
    ),
    "fastinit.linear_moments:correction": Argument(lambda v: linear_moments(X, W, None, v), finite),
    # watch
    "fastinit.watch:every": Argument(
        lambda v: told_steps(every=v), at_least(1), whole=True, optional=True
    ),
    "fastinit.watch:start": Argument(
        lambda v: told_steps(every=1, start=v), at_least(0), whole=True
    ),
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
    "fastinit.variance.lsuv.schedules.alternating:factor": Argument(
        lambda v: [schedules.alternating(v)(place) for place in range(3)], positive
    ),
    "fastinit.coord_check:widths": Argument(
        lambda v: coordinates(widths=[3, v]), at_least(1), whole=True, named="widths[1]"
    ),
    "fastinit.coord_check:steps": Argument(lambda v: coordinates(steps=v), at_least(2), whole=True),
    "fastinit.coord_check:seeds": Argument(lambda v: coordinates(seeds=v), at_least(1), whole=True),
    "fastinit.coord_check:lr": Argument(lambda v: coordinates(lr=v), positive, optional=True),
    "fastinit.coord_check:tolerance": Argument(lambda v: coordinates(tolerance=v), positive),
    "fastinit.frameworks.lightning.VarianceMonitor:every": Argument(
        partial(monitored, "lightning"), at_least(1), whole=True
    ),
    "fastinit.frameworks.transformers.VarianceMonitor:every": Argument(
        partial(monitored, "transformers"), at_least(1), whole=True
    ),
    "fastinit.frameworks.accelerate.watch:every": Argument(accelerated, at_least(1), whole=True),
    # models
    "fastinit.deferred:seed": Argument(recorded, seed, whole=True),
    "fastinit.fill_missing_:seed": Argument(
        lambda v: fill_missing_(nn.Linear(2, 2), [], seed=v), seed, whole=True, optional=True
    ),
    "fastinit.command.models.build:seed": Argument(
        lambda v: models.build("torch.nn:ReLU", seed=v), seed, whole=True
    ),
    "fastinit.command.models.from_function:seed": Argument(
        lambda v: models.from_function("torch.nn:ReLU", seed=v), seed, whole=True
    ),
    "fastinit.checkpoint.layout:shard_size": Argument(
        laid_out,
        lambda n: n >= 1,
        whole=True,
        named="shard size",
        also=("0.5", "1", "nan", np.str_("1")),
    ),
    "fastinit.command.report.rates:size": Argument(
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
    **{
        f"fastinit.recipes.{name}:{argument}": Argument(
            lambda v, name=name, argument=argument: planned(
                getattr(recipes, name)(
                    blocks(),
                    recipes.torch_default,
                    **{"layers": 2, "base_layers": 1, argument: v},
                    last="layers.*",
                ),
                blocks(),
            ),
            takes,
            whole=True,
            optional=None if "layers" in argument else False,
        )
        for name in ("completep", "depth_mup")
        for argument, takes in {
            "layers": at_least(1),
            "base_layers": at_least(1),
            "table": lambda n: n in (3, 8),
        }.items()
    },
    **{
        f"fastinit.recipes.depth_multiplier:{argument}": Argument(
            lambda v, argument=argument: recipes.depth_multiplier(
                **{"layers": 2, "base_layers": 1, argument: v}
            ),
            takes,
            whole=argument != "alpha",
        )
        for argument, takes in {
            "layers": at_least(1),
            "base_layers": at_least(1),
            "alpha": between(0, 1),
        }.items()
    },
    **{
        f"fastinit.recipes.param_groups:{argument}": Argument(
            lambda v, argument=argument: [
                {**group, "params": len(group["params"])}
                for group in recipes.param_groups(
                    net(), recipes.torch_default, **{"lr": 1.0, argument: v}
                )
            ],
            takes,
        )
        for argument, takes in {"lr": positive, "weight_decay": gain, "eps": gain}.items()
    },
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
