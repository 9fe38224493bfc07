"""What runs a model leaves it as it was: every byte, object, mode, hook and generator."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from fastinit import LSUVError, lsuv_, watch
from tests.running_models import (
    COMPILED,
    LARGE,
    LAZY,
    MODELS,
    PLAIN,
    Writer,
    build,
    differences,
    everything,
)
from tests.variance.test_lsuv_memory import MIB, memory, plain


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are small: several threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Fault(Exception):
    """Raised at a hook."""


@pytest.mark.parametrize("name", [*MODELS, *COMPILED])
def test_only_the_layers_weights_are_changed(name: str) -> None:
    model, x = build({**MODELS, **COMPILED}[name])
    before = everything(model)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = lsuv_(model, x)
    assert len(result.layers) > 0
    # A weight is in the registry, and may be an attribute's too (an LSTM's list).
    scaled = {n: s for n, s in result.scales.items() if s != 1.0}
    for name, scale in scaled.items():
        if not name.endswith(("q_proj", "k_proj", "v_proj")):  # which are rows of a parameter
            parameter = f"{name}.weight"
            if parameter not in weights:
                parameter = f"{name}.parametrizations.weight.original0"
            torch.testing.assert_close(model.get_parameter(parameter), weights[parameter] * scale)
    allowed = tuple(
        f"{n.removesuffix(end)}{own}._parameters["
        for n in scaled
        for end in (".q_proj", ".k_proj", ".v_proj")
        for own in ("", ".parametrizations.weight")
    )
    tied = [m.name for m in result.layers if m.note.startswith("tied")]
    left = [n for n in differences(before, everything(model)) if not n.startswith(allowed)]
    assert [n for n in left if not n.startswith(tuple(f"{t}._parameters[" for t in tied))] == []


def calls(model: nn.Module, x: Tensor, **options: Any) -> int:
    """How many modules begin to run, the same one again included."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    handle = register_module_forward_pre_hook(counted)
    try:
        lsuv_(model, x, **options)
    finally:
        handle.remove()
    return count


def spread(calls: int, most: int) -> list[int]:
    """The first call, the last, and some between."""
    return sorted({round(i * (calls - 1) / (most - 1)) for i in range(most)})


@pytest.mark.parametrize("most", [3, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "pre"),
    [(name, "keep") for name in {**MODELS, **LAZY}] + [(name, "orthonormal") for name in PLAIN],
)
def test_an_error_at_any_hook_changes_nothing(name: str, pre: str, most: int) -> None:
    """Of three calls before, after and before it; of every one both where there is time (make slow)."""
    made = {**MODELS, **LAZY}[name]
    options = {"pre": pre, "center": True}
    hooks = register_module_forward_pre_hook, register_module_forward_hook
    for i, turn in enumerate(spread(calls(*build(made), **options), most)):
        for register in hooks if most > 3 else hooks[i % 2 : i % 2 + 1]:
            model, x = build(made)
            before = everything(model)
            left = turn

            def fail(*_: object) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Fault

            handle = register(fail)
            try:
                with pytest.raises(Fault):
                    lsuv_(model, x, **options)
            finally:
                handle.remove()
            assert differences(before, everything(model)) == [], (turn, register)


@pytest.mark.parametrize("name", MODELS)
def test_an_output_that_cannot_be_scaled_changes_nothing(name: str) -> None:
    model, x = build(MODELS[name])
    with torch.no_grad():
        next(p for p in reversed(list(model.parameters())) if p.dim() > 1).fill_(torch.nan)
    before = everything(model)
    with pytest.raises(LSUVError, match="not finite"):
        lsuv_(model, x)
    assert differences(before, everything(model)) == []


def test_lazy_modules_are_initialised_and_their_statistics_as_new() -> None:
    model, x = build(LAZY["lazy"])
    result = lsuv_(model, x)
    assert [m.name for m in result.layers] == ["0", "3", "5"]
    assert type(model[1]) is nn.BatchNorm2d
    assert model[1].running_mean.eq(0).all()
    assert model[1].running_var.eq(1).all()
    assert model[1].num_batches_tracked == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _of_any(value: Any) -> Any:
    if isinstance(value, type):
        return value.__name__
    return value[1] if isinstance(value, tuple) and len(value) == 2 else value


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_watching_changes_nothing(name: str, error: bool) -> None:
    """The watched run leaves what the same run leaves that is not watched."""

    def run(watched: bool) -> dict[str, Any]:
        model, x = build(MODELS[name])
        with torch.no_grad(), suppress(Fault), watch(model) if watched else nullcontext():
            model(x)
            if error:
                raise Fault
        found = everything(model)
        # Another model is of other objects, its hooks have other numbers and some its own classes.
        return {re.sub(r": \d+\]", "]", n): _of_any(v) for n, v in found.items()}

    assert differences(run(False), run(True)) == []


def in_a_thread(m: Any, x: Tensor) -> None:
    thread = threading.Thread(target=lambda: m.state.add_(1))
    thread.start()
    thread.join()


def by_its_address(m: Any, x: Tensor) -> None:
    m.state.numpy()[7] += 1


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("write", [in_a_thread, by_its_address])
def test_what_is_written_behind_torchs_back(
    write: Callable[[Any, Tensor], None], large: bool
) -> None:
    """A small buffer is put back; a large one is named, and nothing else is changed."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), Writer(write, large)), torch.randn(9, 16)
    before, weight = everything(model), model[0].weight.clone()
    if not large:
        lsuv_(model, x)
        assert all("[0: 'weight']" in name for name in differences(before, everything(model)))
        return
    with pytest.raises(LSUVError, match=r"cannot be put back: 1\.state"):
        lsuv_(model, x)
    assert model[0].weight.equal(weight)
    changed = differences(before, everything(model))
    assert all("'state'" in name for name in changed)
    assert len(changed) == 1


def peak(model: nn.Module, x: Tensor) -> int:
    """Bytes that LSUV takes at once beyond a plain run."""
    before = plain(model, x)
    return memory(lambda: lsuv_(model, x)).peak - before.peak


def test_memory_is_that_of_what_is_written() -> None:
    size = 1 << 20
    norm = nn.Sequential(nn.Linear(4, size, bias=False), nn.BatchNorm1d(size))
    assert peak(norm, torch.randn(8, 4)) < 2 * 4 * size + MIB  # the running statistics
    norm.eval()
    model = nn.Sequential(nn.Embedding(size, 8, max_norm=1.0), nn.Linear(8, 8))
    tokens = torch.randint(size, (4, 64))
    assert peak(model, tokens) < MIB  # rows of 32 MiB
    assert LARGE * 8 > 1 << 16
