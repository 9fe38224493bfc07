"""The short way through the gate says only what the long way would, of every kind of tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from tensor_kinds import KINDS, quietly
from torch import Tensor, nn

from fastinit.backends.choose import native
from fastinit.elements import tensors

pytestmark = pytest.mark.skipif(native.module is None, reason="without the native module")


def numbers(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).view(4, 6).to(dtype)


def complex_numbers() -> Tensor:
    return torch.complex(numbers(), -numbers())


def quantised(by_channel: bool = False) -> Tensor:
    if by_channel:
        return torch.quantize_per_channel(
            numbers(), torch.full((4,), 0.1), torch.zeros(4, dtype=torch.long), 0, torch.qint8
        )
    return torch.quantize_per_tensor(numbers(), 0.1, 0, torch.quint8)


def inferred() -> Tensor:
    with torch.inference_mode():
        return numbers()


MORE: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "quantised": (quantised, False),
    "quantised, a row": (lambda: quantised()[1:2], False),
    "quantised by channel": (lambda: quantised(by_channel=True), False),
    "conjugated": (lambda: complex_numbers().conj(), True),
    "a conjugated parameter": (lambda: nn.Parameter(complex_numbers().conj()), True),
    "conjugated twice": (lambda: complex_numbers().conj().conj(), True),
    "its real numbers": (lambda: torch.view_as_real(complex_numbers()), True),
    "its real part": (lambda: complex_numbers().real, False),
    "complex": (complex_numbers, True),
    "integers": (lambda: numbers().long(), True),
    "truths": (lambda: numbers() > 0, True),
    "float8": (lambda: numbers(torch.float8_e4m3fn), True),
    "one number": (lambda: torch.tensor(1.0), True),
    "no numbers": (lambda: numbers()[:0], False),
    "of the last column": (lambda: numbers()[:, 5:], False),
    "the last row": (lambda: numbers()[3:], True),
    "expanded": (lambda: torch.ones(1).expand(6), False),
    "channels last": (
        lambda: torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        False,
    ),
    "for inference": (inferred, False),
    "a buffer": (lambda: nn.Buffer(numbers()), True),
    "shared": (lambda: numbers().share_memory_(), True),
    "a gradient's": (lambda: numbers().requires_grad_() * 2, True),
}
"""Each with whether the short way takes it."""


def check_agrees(tensor: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the short way says anything of a tensor; it then has to say what the long way does."""
    address = tensors.plain_address(tensor)
    if address:
        assert address == tensors.plain_cpu_address(tensor) == tensor.data_ptr()
        shortly = tensors.values(tensor)
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "plain_address", lambda tensor: 0)
        if not address:
            return False
        assert tensors.obstacle(tensor) is None
        assert tensors.unreadable(tensor) is None
        assert tensors.memory(tensor) is tensor
        at_length = tensors.values(tensor)
    for its in (shortly, at_length):
        assert (its.data_ptr() == address) is not tensor.is_conj()
        assert not its.requires_grad
        assert not its.is_neg()
        assert not its.is_conj()
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(kind, lambda tensor: (check_agrees(tensor, monkeypatch), None)[1])


@pytest.mark.parametrize("name", MORE)
def test_more_kinds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, short = MORE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is deprecating quantised tensors
        assert check_agrees(make(), monkeypatch) is short


def test_values_of_what_is_conjugated_are_its_own() -> None:
    conjugated = complex_numbers().conj()
    values = tensors.values(conjugated)
    assert torch.equal(torch.view_as_real(values)[..., 1], numbers())
    assert not values.is_conj()


def test_the_gate_names_what_is_quantised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = quantised()
    with pytest.raises(NotImplementedError, match="w is quantised"):
        tensors.memory(tensor, "w")
