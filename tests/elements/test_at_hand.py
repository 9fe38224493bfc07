"""What is at hand goes the short way, which asks what the long one does and passes no backend by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensor_kinds import KINDS, SHAPE, data, quietly
from torch import Tensor, nn

import fastinit
from fastinit import init
from fastinit.backends import choose as backends
from fastinit.backends.choose import native
from fastinit.backends.contract import Backend
from fastinit.fills import operator as ops
from fastinit.fills.at_hand import at_hand
from fastinit.statistics.reading import MAX_DIMS
from fastinit.stream import laws


def marked(of: Callable[[], Tensor] = data) -> Tensor:
    tensor = of()
    tensor.said = "by somebody"  # type: ignore[attr-defined]
    return tensor


def second_chunk() -> Tensor:
    """Of a parameter, after the first one was written: torch would not say whether it is a leaf."""
    first, second = nn.Parameter(data()).chunk(2)
    init.zeros_(first)
    return second


def inferred() -> Tensor:
    with torch.inference_mode():
        return data()


AT_HAND: dict[str, tuple[Callable[[], object], bool]] = {
    "rows of a parameter": (lambda: nn.Parameter(data())[1:3], True),
    "a chunk, another being written": (second_chunk, True),
    "rows, without a gradient": (lambda: nn.Parameter(data()).detach()[1:], True),
    "integers": (lambda: data().long(), True),
    "no elements": (lambda: data()[:0], False),
    "what a mark was left on, detached": (lambda: marked().detach(), True),
    "what a mark was left on": (marked, False),
    "a parameter with a mark": (lambda: marked(lambda: nn.Parameter(data())), False),
    "a view of what has a mark": (lambda: marked(lambda: nn.Parameter(data()))[1:], False),
    "a result": (lambda: nn.Parameter(data()) * 2, False),
    "a view of a result": (lambda: (nn.Parameter(data()) * 2)[1:], False),
    "a parameter that became a result": (
        lambda: nn.Parameter(data(), False).copy_(nn.Parameter(data())),
        False,
    ),
    "columns": (lambda: data()[:, :2], False),
    "expanded": (lambda: data()[:1].expand(SHAPE), False),
    "made for inference": (inferred, False),
    "no tensor": (lambda: [1.0], False),
    "its class": (lambda: Tensor, False),
    "an array": (lambda: data().numpy(), False),
    "Blocks": (lambda: fastinit.Blocks.empty((4, 32), "mxfp8"), False),
}


@pytest.mark.skipif(native.module is None, reason="without the native module")
@pytest.mark.parametrize("name", AT_HAND)
def test_what_is_at_hand(name: str) -> None:
    make, wanted = AT_HAND[name]
    tensor = make()
    address = at_hand(tensor)
    assert address == (tensor.data_ptr() if wanted else 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_are_at_hand(kind: str) -> None:
    """Nothing that has to be asked for more; without the native module nothing is."""
    plain = native.module is not None and kind in ("plain", "parameter", "lazily cloned")

    def check(tensor: Tensor) -> None:
        assert bool(at_hand(tensor)) is plain

    quietly(kind, check)


@pytest.mark.skipif(native.module is None, reason="without the native module")
def test_the_native_module_trusts_nobody() -> None:
    module = native.module
    assert module is not None
    assert module.MAX_DIMS == MAX_DIMS  # which stands in Python too, for what has no native module
    fill = native.prepared(laws.normal(), torch.float32)
    with pytest.raises(ValueError, match="24 elements has no address"):
        module.fill_contiguous(fill, 0, 24, 0, 0, 1)
    with pytest.raises(ValueError, match="24 elements has no address"):
        module.fill_many([(fill, 0, 0, 0, 0, (4, 6), (6, 1), (6, 1))], 1)
    with pytest.raises(ValueError, match="has no address"):
        module.Readings([(0, 0, (4, 6), (6, 1), False, 8)], False)
    with pytest.raises(ValueError, match="has no address"):
        module.Readings([(0, 8, (4, 6), (6, 1), False, 0)], False)
    module.fill_contiguous(fill, 0, 0, 0, 0, 1)  # nothing to write


def test_no_way_in_bypasses_a_registered_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Backend):
        name = "mine"
        wrote = 0

        def serves(self, device: torch.device) -> str | None:
            return None

        def fill_many(self, writes: Any) -> None:
            self.wrote += len(writes)

    monkeypatch.setattr(backends, "BACKENDS", list(backends.BACKENDS))
    mine = Mine()
    backends.register(mine, before="native")
    init.normal_(torch.empty(4), seed=0)
    ops.fill_many_([ops.Request(torch.empty(4), laws.normal(), 0)])
    init.orthogonal_(torch.empty(4, 4), seed=0)
    assert mine.wrote == 3
