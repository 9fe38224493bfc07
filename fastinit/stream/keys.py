"""Keys: where a stream's 64-bit seed and 64-bit stream id come from."""

from __future__ import annotations

import ctypes
import threading
from functools import partial
from hashlib import blake2b

import torch

from fastinit.base import number
from fastinit.base.torch_internals import constant_when_compiled

STREAM_VERSION = 1
"""The version of the number stream: a change of any output bit is a new one."""

ANONYMOUS = 0
"""The stream of a call without a name; its seed is then a fresh draw."""


def stream_id(name: str) -> int:
    """The stream of a named parameter: the first 8 bytes, little-endian, of BLAKE2b(name).

    >>> hex(stream_id("weight"))
    '0x84e02e3edc717246'
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, but got {name!r}")
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def substream(stream: int, purpose: str) -> int:
    """A stream of its own for a second set of numbers that one call needs (which zeros, which signs)."""
    return int.from_bytes(
        blake2b(stream.to_bytes(8, "little") + purpose.encode(), digest_size=8).digest(), "little"
    )


def check_seed(seed: int) -> int:
    """The seed as an int, if it is a whole number in [0, 2^64); one of NumPy's will do.

    Raises:
        NumberTypeError: not a whole number (a bool is none).
        NumberRangeError: out of range.
    """
    if type(seed) is not int:
        seed = number.integer("seed", seed)
    if not 0 <= seed < 1 << 64:
        number.out_of_range("seed", "in [0, 2**64)", seed)
    return seed


def signed(word: int) -> int:
    """A 64-bit unsigned number as the signed one with the same bits: what operators take."""
    return word - (1 << 64) if word >> 63 else word


constant_when_compiled(stream_id)
constant_when_compiled(substream)


def check_generator(generator: torch.Generator) -> None:
    """Raises TypeError for what is none."""
    if not hasattr(generator, "initial_seed"):
        raise TypeError(f"generator must be a torch.Generator, but got {generator!r}")


class _Cell(threading.local):
    """A thread's own place to draw into: making a tensor would cost more than the draw."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            word = torch.empty((), dtype=torch.int64, device="cpu")
            # Of what nobody but Python holds, torch takes hold with Python's lock, in each call.
            self.view = word.view(())
        # The word is read where it lies: item() would take twice as long.
        draw = partial(word.random_, -(1 << 63), None)
        self.draw = draw, ctypes.c_uint64.from_address(word.data_ptr())


_cell = _Cell()


def draw_seed(generator: torch.Generator | None = None) -> int:
    """One 64-bit draw from ``generator``, by default torch's CPU generator.

    A generator of another device gives the draw from its seed and offset, and its offset moves on by
    4 (one Philox block); neither synchronises.

    Raises:
        TypeError: a generator that is none.
    """
    draw, word = _cell.draw
    if generator is None:
        draw()  # saying generator=None takes a fifth longer
        return word.value
    check_generator(generator)
    if generator.device.type == "cpu":
        draw(generator=generator)
        return word.value
    from fastinit.stream.reference import philox_words

    offset = generator.get_offset()
    generator.set_offset(offset + 4)
    seed = generator.initial_seed() & 0xFFFF_FFFF_FFFF_FFFF
    low, high = philox_words(seed, ANONYMOUS, torch.tensor([offset // 4], device="cpu"))[
        0, :2
    ].tolist()
    return int(low | high << 32)
