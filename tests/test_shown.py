"""What is shown: a row of a table says whose it is, and at a prompt a result is a few lines."""

import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

import fastinit
from fastinit.checkpoint import writing as checkpoint
from fastinit.command import report
from fastinit.plan import groups
from fastinit.plan.plan import Fill, Plan


def expanded(label: str, there: list[set[int]]) -> set[str]:
    """The names that a group's pattern stands for, among indices that there are."""
    at = iter(there)
    words = []
    for word in label.split("."):
        if word[0] not in "*0123456789":
            words.append([word])
            continue
        indices = next(at)
        words.append(sorted(str(i) for i in indices if _is_meant(i, word)))
    return {".".join(name) for name in product(*words)}


def _is_meant(index: int, word: str) -> bool:
    if word == "*":
        return True
    if found := re.fullmatch(r"(\d+),(\d+),…,(\d+)", word):
        first, second, last = map(int, found.groups())
        return index in range(first, last + 1, second - first)
    runs = [run.split("-") for run in word.split(",")]
    return any(int(run[0]) <= index <= int(run[-1]) for run in runs)


FILLS = (Fill.normal(std=0.02), Fill.normal(std=0.01), Fill.constant(0.0))
INDICES = st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 2))


@hypothesis.given(st.dictionaries(INDICES, st.sampled_from(FILLS), min_size=1))
@hypothesis.settings(deadline=None)
def test_a_pattern_stands_for_its_members_and_no_others(of: dict[Any, Fill]) -> None:
    fills = {f"{stem}.{i}.x.{j}.weight": fill for (stem, i, j), fill in of.items()}
    made = groups.groups(fills, {})
    assert sorted(name for group in made for name in group.names) == sorted(fills)
    for group in made:
        stem = group.pattern[0]
        there = [{i for s, i, _ in of if s == stem}, {j for s, _, j in of if s == stem}]
        names = expanded(group.pattern, there) & set(fills)  # * is of the indices that there are
        assert names == set(group.names)
        assert {fills[name] for name in names} == {group.fill}


def nets() -> Iterator[tuple[nn.Module, list[str]]]:
    """Models and the rows that their tables have."""
    yield (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
        ["0.weight", "0.bias", "2.weight", "2.bias"],
    )
    yield nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), ["*.weight", "*.bias"]
    yield nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in range(3)]), ["*"]
    yield (
        nn.Sequential(*(nn.Linear(8, 8 + (i == 4)) for i in range(4)), nn.Linear(4, 4)),
        ["0-3.weight", "0-3.bias", "4.weight", "4.bias"],
    )
    yield nn.ModuleDict({"x" * 90: nn.Linear(2, 2, bias=False)}), ["x" * 80]


@pytest.mark.parametrize(("model", "rows"), list(nets()))
def test_each_row_says_which_parameters_it_is_of(model: nn.Module, rows: list[str]) -> None:
    plan = Plan.from_model(
        model,
        lambda name, module, shape, config: Fill.normal(std=getattr(module, "in_features", 1)),
    )
    plan.apply_(model)
    for table in (
        report.init_table(report.measure(model, plan)),
        plan.table(model),
        plan.table(),
    ):
        lines = table.splitlines()
        first = [line.split()[0] for line in lines if line.strip()]
        assert [row for row in rows if row not in first] == []
        assert max(map(len, lines)) <= 80


def test_layers_are_a_heading_where_names_would_not_fit() -> None:
    labels = ["wte", "layers.*.norm", "layers.*.attention.q", "layers.0.mlp", "norm"]
    assert list(groups.headed(labels, 15)) == [
        (None, "wte"),
        ("layers.*", "  norm"),
        (None, "  attention.q"),
        (None, "layers.0.mlp"),
        (None, "norm"),
    ]
    assert list(groups.headed(labels, 30)) == [(None, label) for label in labels]


def deep(layers: int = 100) -> nn.Module:
    with fastinit.deferred():
        return nn.Sequential(*(nn.Linear(64, 64) for _ in range(layers)))


def in_parts(parts: int = 200) -> Fill:
    fill, whole = Fill.normal(), torch.empty(parts, 3, device="meta")
    for row in whole:
        fill = fill.with_part(row, Fill.constant(1.0))
    return fill


def computed() -> object:
    with fastinit.deferred():
        net = nn.Linear(300, 300)
        with torch.no_grad():
            net.weight.copy_(torch.linalg.qr(torch.randn(300, 300))[0])
    return fastinit.recorded_plan(net)["weight"]


def watched() -> fastinit.watch:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    with fastinit.watch(net, gradients=True) as seen:
        net(torch.ones(4, 8)).sum().backward()
    return seen


def scaled() -> fastinit.LSUVResult:
    return fastinit.lsuv_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(20))), torch.randn(9, 8))


def written(directory: Any) -> checkpoint.Written:
    return checkpoint.write(deep(), directory, shard_size="100KB")


RESULTS: dict[str, Callable[[Any], object]] = {
    "Plan": lambda _: fastinit.recorded_plan(deep()),
    "a plan's groups": lambda _: fastinit.recorded_plan(deep()).groups(),
    "a plan's difference": lambda _: fastinit.recorded_plan(deep()).diff(Plan({}))[0],
    "Fill in parts": lambda _: in_parts(),
    "a difference in parts": lambda _: Plan({"w": in_parts()}).diff(Plan({"w": in_parts(199)}))[0],
    "Computed": lambda _: computed(),
    "Layout": lambda _: checkpoint.layout(deep(), shard_size="100KB"),
    "Shard": lambda _: checkpoint.layout(deep()).shards[0],
    "Stored": lambda _: checkpoint.layout(deep()).shards[0].tensors[0],
    "Written": written,
    "Watch": lambda _: watched(),
    "a watched layer": lambda _: watched().layers[0],
    "LSUVResult": lambda _: scaled(),
    "a measured layer": lambda _: scaled().layers[0],
    "Moments": lambda _: fastinit.moments(torch.randn(100)),
    "Moments of channels": lambda _: fastinit.moments(torch.randn(1000, 1000), dim=1),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_a_few_lines_at_a_prompt(name: str, tmp_path) -> None:
    result = RESULTS[name](tmp_path)
    for said in (repr(result), str(result)):
        assert len(said) <= 720  # nine lines of a terminal; most are one or two
        assert said.count("\n") <= 5
        assert " at 0x" not in said
        assert "\\x" not in said
