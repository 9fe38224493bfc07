"""Numbers: every argument of a public function that is one, with every kind of value.

What is no number is a NumberTypeError, what is out of range a NumberRangeError; both name the argument
and the value. Each number that is one counts as the float or int that it is, whatever its type.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import runpy
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbers_asked import ARGUMENTS, net
from numbers_values import (
    HUGE,
    INF,
    NAN,
    NOT_NUMBERS,
    NUMBERS,
    Argument,
    Value,
)
from torch import Tensor, nn

import fastinit
from fastinit import Fill, NumberRangeError, NumberTypeError, Plan, init, lsuv_, recipes
from fastinit.base import number
from fastinit.checkpoint import writing as checkpoint
from fastinit.fills import fans
from fastinit.stream import laws


def from_json(**fields: Any) -> Plan:
    """A plan of one parameter with other fields than it was saved with."""
    entry = {"name": "w", **json.loads(Plan({"w": Fill.normal()}).to_json())["parameters"][0]}
    return Plan.from_json(
        json.dumps({**json.loads(Plan({}).to_json()), "parameters": [{**entry, **fields}]})
    )


def written(tmp: Path, size: Any) -> int:
    plan = Plan.from_model(net(), recipes.torch_default)
    return len(checkpoint.write(net(), tmp, plan, shard_size=size).layout.shards)


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
    if key.startswith("fastinit.frameworks."):
        module = ".".join(key.split(".")[:3])
        pytest.importorskip(module, reason="make frameworks", exc_type=ImportError)
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
    with pytest.raises(ValueError, match=f"parameter w: {field} must be a number"):
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
        *((std, True) for std in (0.5, 2, np.float64(0.5))),
        # Their value is in memory: dynamo breaks the graph to read it. Up to torch 2.11 it does so too
        # to make a float of a Fraction.
        *((std, False) for std in (np.float32(0.5), torch.tensor(0.5), Fraction(1, 2))),
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

PAGES = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "site.py"))["PAGES"]
"""The modules that are public."""

A_NUMBER = re.compile(r"\b(int|float|Fans|Schedule|Shapes)\b")

NOT_ASKED = {
    "fastinit.backends": "backends see what was checked",
    "fastinit.stream.reference": "the specification sees what was checked",
    "fastinit.base.number": "tested by all of them",
    "fastinit.variance.plots": "no numbers but those of results",
    "fastinit.variance.run.plots": "no numbers but those of results",
}
"""Modules, and why."""

RESULTS = {
    *("Watched", "Measured", "LSUVResult", "Group", "Difference", "Timing"),
    *("Layout", "Written", "Rates", "Law", "Params", "Window", "Request"),
    *("Scaling", "Run", "CoordCheck", "Coordinates", "Slope"),
}
"""Classes that functions make, and callers do not."""

ELSEWHERE = {
    "fastinit.statistics.fields.Fields:correction": "asked of Moments and ChannelMoments",
    "fastinit.init.constant_:val": "torch's own fill_, any number of the tensor's dtype",
    "fastinit.init.sparse_:std": "asked as an argument of init",
    "fastinit.checkpoint.write:shard_size": "test_shards_on_disk",
    "fastinit.checkpoint.measure_rates:size": "of a sample, by the command line",
    "fastinit.command.models.from_config:seed": "needs transformers; hands it to deferred",
    "fastinit.fills.operator.fill_:seed": "asked by fastinit.init",
    "fastinit.fills.operator.draw_seed:seed": "of DTensors, asked by fastinit.init with keys.check_seed",
    "fastinit.fills.operator.fill_:stream": "made by keys.stream_id",
    "fastinit.fills.fans.fans_of:shape": "a tensor's shape",
    "fastinit.fills.fans.truncated_std:reach": "a constant of the laws",
    "fastinit.fills.fans.calculate_gain:param": "is fastinit.init's",
    "fastinit.fills.fans.check_fans:fan": "asked by fastinit.init",
    "fastinit.fills.fans.kaiming_std:a": "asked by fastinit.init",
    "fastinit.fills.fans.kaiming_std:fans": "from shapes, or checked",
    "fastinit.fills.fans.xavier_std:gain": "asked by fastinit.init",
    "fastinit.fills.fans.xavier_std:fans": "from shapes, or checked",
    "fastinit.fills.fans.variance_scaling:fans": "from shapes, or checked",
    "fastinit.fills.fans.variance_scaling:scale": "asked by fastinit.init",
    "fastinit.fills.fans.variance_scaling_std:fans": "from shapes, or checked",
    "fastinit.fills.fans.variance_scaling_std:scale": "asked by fastinit.init",
    "fastinit.fills.fans.uniform_of_std:std": "the law checks it",
    "fastinit.recipes.mup_learning_rates:base": "shapes",
    "fastinit.coord_check:build": "a function of numbers that were asked as widths",
    "fastinit.stream.laws.make:parameters": "asked by Fill",
    "fastinit.command.report.comparison:ratios": "times that the command line took",
    "fastinit.command.report.dry_run:seconds": "times that the command line took",
    "fastinit.command.report.dry_run:free": "what the disk has",
    "fastinit.command.report.written_dcp:seconds": "times that the command line took",
}
"""Arguments, and why they are not in the table; the values of laws are numbers already."""


def public() -> Iterator[tuple[str, Any]]:
    """(name by which it is asked, function or method) of every public module."""
    for page in (*PAGES, "fastinit.command.report"):
        if page in NOT_ASKED:
            continue
        try:
            module = importlib.import_module(page)
        except ImportError:
            continue
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in names:
            thing = getattr(module, name)
            if name in RESULTS or inspect.ismodule(thing):
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
    gone = {key for key in asked - found if "config" not in key and ".frameworks." not in key}
    assert gone == set()
