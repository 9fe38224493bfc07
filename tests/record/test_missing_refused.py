"""fill_missing_: what nobody wrote is refused by name, and a failure leaves all as it was."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from half_loaded import FILE, Net, assigned, build, emptied, whole
from torch import nn

from fastinit import (
    deferred,
    fill_missing_,
    materialize_,
    recorded_plan,
)


class Left(nn.Module):
    """A parameter that its constructor leaves unwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(3))
        self.linear = nn.Linear(3, 3)


def left() -> Left:
    with deferred():
        return Left()


def loaded_on_meta() -> tuple[nn.Module, Any]:
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is no use
        model.load_state_dict(FILE, strict=False)
    return model, None


def told_that_all_is_loaded() -> tuple[nn.Module, Any]:
    return build(), []


def untold() -> tuple[nn.Module, Any]:
    model = build()
    emptied(model)
    return model, None


def no_plan() -> tuple[nn.Module, Any]:
    return Net(), ["head.weight"]


def no_record() -> tuple[nn.Module, Any]:
    return nn.Linear(2, 2, device="meta"), None


def layers() -> nn.Sequential:
    with deferred():
        return nn.Sequential(nn.Linear(2, 2))


def copied() -> tuple[nn.Module, Any]:
    return copy.deepcopy(layers()), None


def pickled() -> tuple[nn.Module, Any]:
    return pickle.loads(pickle.dumps(layers())), None


def with_a_copied_layer() -> tuple[nn.Module, Any]:
    model = layers()
    return model.append(copy.deepcopy(model[0])), None


def copied_and_emptied() -> tuple[nn.Module, Any]:
    return copy.deepcopy(layers()).to_empty(device="cpu"), None


def left_unwritten() -> tuple[nn.Module, Any]:
    return left(), None


def of_another_shape() -> tuple[nn.Module, Any]:
    model = build()
    model.embed.weight = nn.Parameter(torch.ones(7, 3))
    return model, None


def renamed() -> tuple[nn.Module, Any]:
    return build(), ["lm_head.weight"]


def whole_result() -> tuple[nn.Module, Any]:
    model = build()
    return model, model.load_state_dict(FILE, strict=False, assign=True)


def changed_buffer() -> tuple[nn.Module, Any]:
    model = build()
    model.noise.fill_(3.0)
    missing = assigned(model)
    model.noise = torch.empty(4)
    return model, missing


def only_emptied() -> tuple[nn.Module, Any]:
    return build().to_empty(device="cpu"), None


def replaced_by_hand() -> tuple[nn.Module, Any]:
    model = build()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(p, device="cpu")))
    return model, None


REFUSED: dict[Callable[[], tuple[nn.Module, Any]], str] = {
    loaded_on_meta: "written on meta, where nothing is kept: tensors embed.weight, norm.weight",
    told_that_all_is_loaded: r"on meta, though not among the missing .*: tensors copy, embed.weight",
    only_emptied: r"nothing tells whether these were loaded, .* \(\[\]: all were\): tensors",
    replaced_by_hand: "nothing tells whether these were loaded",
    untold: "nothing tells whether these were loaded, .*: tensors copy, out.weight, norm.bias",
    no_plan: "the plan does not have them: tensor head.weight",
    no_record: r"not recorded by fastinit.deferred\(\) .*copied.*: tensors weight, bias",
    copied: r"not recorded by .*copied.*: tensors 0\.weight, 0\.bias",
    pickled: r"not recorded by .*copied.*: tensors 0\.weight, 0\.bias",
    with_a_copied_layer: r"not recorded by .*copied.*: tensors 1\.weight, 1\.bias$",
    copied_and_emptied: r"nothing tells what was loaded, as this model was not recorded by .*copied",
    left_unwritten: "left unwritten by its constructor: tensor w$",
    of_another_shape: "of other shapes here: embed.weight, out.weight",
    renamed: "the model has no tensor lm_head.weight",
    changed_buffer: "the plan does not have them: tensor noise",
}


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.named_parameters(remove_duplicate=False)]
    tensors += model.named_buffers(remove_duplicate=False)
    # As text, in which NaN, which memory without values may hold, is itself.
    return [(n, id(t), None if t.is_meta else str(t.detach().tolist())) for n, t in tensors]


@pytest.mark.parametrize("make", REFUSED)
def test_what_nobody_wrote_is_refused_by_name(make: Callable[[], tuple[nn.Module, Any]]) -> None:
    model, missing = make()
    before = state(model)
    with pytest.raises(ValueError, match=f"nothing was filled: .*{REFUSED[make]}"):
        fill_missing_(model, missing)
    assert state(model) == before


def test_names_must_be_names() -> None:
    model, result = whole_result()
    for wrong in (result, 3, [3]):
        with pytest.raises(TypeError, match="missing must be names of tensors, but got"):
            fill_missing_(model, wrong)
    fill_missing_(model, result.missing_keys)


def test_a_failure_while_writing_unties_again() -> None:
    model = build()
    missing = assigned(model)
    before = state(model)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_missing_(model, missing, progress=stop)
    assert state(model) == before
    assert fill_missing_(model, missing).tied


def test_what_the_constructor_left_unwritten_may_be_loaded() -> None:
    model = left()
    model.load_state_dict({"w": torch.ones(3)}, strict=False, assign=True)
    assert fill_missing_(model).filled == ["linear.weight", "linear.bias"]
    model = left()
    model.to_empty(device="cpu")
    result = model.load_state_dict({"w": torch.ones(3)}, strict=False)
    assert fill_missing_(model, result.missing_keys).filled == ["linear.weight", "linear.bias"]


def test_one_name_of_a_tied_parameter_alone_is_not_written() -> None:
    """materialize_ would give it the constructor's values, and untie the model."""
    model = build()
    assigned(model)
    for function in (materialize_, recorded_plan):
        with pytest.raises(ValueError, match=r"tie them again, .*: parameter out.weight \(of emb"):
            function(model)
    model.out.weight = model.embed.weight
    materialize_(model)
    assert torch.equal(model.head.weight, whole().head.weight)


def test_memory_that_is_shared_in_another_way_is_refused() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.Parameter(torch.randn(4, 4))
            self.row = nn.Parameter(self.all.data[1])

    with deferred():
        model = Views()
    model.load_state_dict({"all": torch.ones(4, 4)}, strict=False, assign=True)
    with pytest.raises(ValueError, match=r"share memory .*: parameter row \(of all\)"):
        fill_missing_(model)
