"""deferred(): what cannot be recorded, or written, is an error that says where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from recording import Holder, quiet, recorded, written
from torch import nn
from torch.overrides import TorchFunctionMode

from fastinit import DeferredError, deferred, materialize_, recorded_plan


@pytest.mark.parametrize(
    "read",
    [
        lambda w: w.sum().item(),
        lambda w: bool((w > 0).any()),
        lambda w: w.tolist(),
        lambda w: w.detach().numpy(),
        lambda w: torch.allclose(w, w),
    ],
)
def test_reading_a_parameter_is_an_error_that_names_the_line(read: Callable) -> None:
    line = read.__code__.co_firstlineno
    with pytest.raises(DeferredError, match=rf"test_block_refused\.py:{line}\b"), deferred():
        Holder(read, 4, 4)
    assert not nn.Linear(2, 2).weight.is_meta


def test_what_the_constructor_left_unwritten_is_an_error() -> None:
    for write in (lambda w: None, quiet(lambda w: w[:2].normal_())):
        model = recorded(lambda write=write: Holder(write, 4, 4))
        with pytest.raises(ValueError, match="left unwritten, at least in part: parameter w"):
            materialize_(model)
        assert model.w.is_meta


def test_what_was_not_recorded_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"not recorded.*weight, bias"):
        materialize_(nn.Linear(2, 2, device="meta"))
    both = nn.Sequential(recorded(lambda: nn.Linear(2, 2), 0), recorded(lambda: nn.Linear(2, 2), 1))
    with pytest.raises(ValueError, match="seeds \\[0, 1\\]"):
        materialize_(both)


def test_a_model_that_is_written_or_was_never_recorded_is_an_error() -> None:
    for model in (nn.Linear(2, 2), written(lambda: nn.Linear(2, 2))):
        for function in (recorded_plan, materialize_):
            with pytest.raises(ValueError, match=r"not built within fastinit\.deferred\(\)"):
                function(model)
    assert len(recorded_plan(recorded(nn.ReLU))) == 0


def test_a_model_that_cannot_be_written_stays_on_meta() -> None:
    model = recorded(lambda: nn.Sequential(nn.Linear(2, 2), Holder(lambda w: None, 3)))
    with pytest.raises(ValueError, match=r"1\.w"):
        materialize_(model)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="seed"), deferred(-1):
        pass
    with torch.device("meta"), pytest.raises(ValueError, match="default device"), deferred():
        pass
    with deferred(), pytest.raises(RuntimeError, match="already in force"), deferred():
        pass
    with pytest.raises(ValueError, match="meta"):
        materialize_(recorded(lambda: nn.Linear(2, 2)), device="meta")


class _Dropped(TorchFunctionMode):
    """As Lightning's ``init_module(empty_init=True)``: functions of torch.nn.init do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["uniform_", "normal_", "kaiming_uniform_", "constant_"])
@pytest.mark.parametrize("outer", ["theirs", "ours"])
def test_an_initialisation_that_something_drops_is_an_error(name: str, outer: str) -> None:
    """Not what was there before, which would be taken for what the constructor gives."""

    def build(blocks: list[Callable]) -> None:
        with blocks[0](), blocks[1]():
            weight = nn.Parameter(torch.zeros(4, 4))
            getattr(nn.init, name)(weight, 1.0)

    blocks = [_Dropped, deferred] if outer == "theirs" else [deferred, _Dropped]
    with pytest.raises(DeferredError, match=rf"{name} at .*test_block.* wrote nothing"):
        build(blocks)
