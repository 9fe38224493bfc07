"""Keys: stream ids from names, seeds from generators."""

from __future__ import annotations

import threading
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastinit import init
from fastinit.stream import keys


def test_stream_ids_are_frozen() -> None:
    assert keys.stream_id("weight") == 0x84E02E3EDC717246


@given(st.text(st.characters(codec="utf-8")))
def test_a_stream_id_is_eight_bytes_of_blake2b(name: str) -> None:
    digest = blake2b(name.encode("utf-8"), digest_size=8).digest()
    assert keys.stream_id(name) == sum(byte << 8 * i for i, byte in enumerate(digest))


@pytest.mark.parametrize("name", [None, 3, b"weight", ["weight"]])
def test_a_name_is_a_str(name: object) -> None:
    with pytest.raises(TypeError, match="name must be a str, but got"):
        keys.stream_id(name)  # type: ignore[arg-type]


def test_substreams_differ_from_their_stream_and_each_other() -> None:
    ids = {
        keys.stream_id("weight"),
        keys.substream(keys.stream_id("weight"), "signs"),
        keys.substream(keys.stream_id("weight"), "zeros"),
        keys.substream(keys.stream_id("bias"), "signs"),
        keys.substream(keys.ANONYMOUS, "signs"),
        keys.substream(2**64 - 1, "signs"),
    }
    assert len(ids) == 6
    assert all(0 <= i < 2**64 for i in ids)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_seeds(seed: int) -> None:
    assert keys.check_seed(seed) == seed
    assert keys.check_seed(np.uint64(seed)) == seed


@pytest.mark.parametrize("seed", [np.int64(7), torch.tensor(7), np.array(7)])
def test_a_seed_of_another_package_is_an_int(seed: Any) -> None:
    assert type(keys.check_seed(seed)) is int
    assert init.normal_(torch.empty(9), seed=seed).equal(init.normal_(torch.empty(9), seed=7))


@pytest.mark.parametrize("seed", [True, 1.0, "1", None, torch.tensor([1]), torch.tensor(1.0)])
def test_a_seed_is_an_int(seed: object) -> None:
    with pytest.raises(TypeError, match="seed must be an int, but got"):
        keys.check_seed(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), but got {seed}"):
        keys.check_seed(seed)


def test_draws_are_reproducible_and_differ() -> None:
    torch.manual_seed(3)
    first = [keys.draw_seed() for _ in range(100)]
    torch.manual_seed(3)
    assert [keys.draw_seed() for _ in range(100)] == first
    assert len(set(first)) == 100
    assert all(0 <= seed < 2**64 for seed in first)
    assert any(
        seed >= 2**63 for seed in first
    )  # all 64 bits; one of 100 has the top one but 2^-100
    assert any(seed & 1 for seed in first)


def test_a_draw_moves_its_generator_only() -> None:
    generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    first = keys.draw_seed(generator)
    assert torch.get_rng_state().equal(state)
    assert keys.draw_seed(generator) != first
    assert keys.draw_seed(generator.manual_seed(3)) == first
    torch.manual_seed(3)
    assert keys.draw_seed() == first  # the default generator is a generator like another


def test_a_draw_ignores_the_default_device_and_inference_mode() -> None:
    torch.manual_seed(5)
    first = keys.draw_seed()
    torch.manual_seed(5)
    with torch.inference_mode(), torch.device("meta"):
        assert keys.draw_seed() == first


def test_a_draw_in_another_thread() -> None:
    seeds: list[int] = []

    def draw() -> None:
        seeds.append(keys.draw_seed(torch.Generator().manual_seed(7)))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seeds == [keys.draw_seed(torch.Generator().manual_seed(7))] * 3


def test_a_draw_from_another_device_moves_the_offset_by_one_block() -> None:
    class Generator:
        """As a CUDA generator: a seed and an offset that counts words."""

        device = torch.device("cuda")

        def __init__(self) -> None:
            self.offset = 0

        def initial_seed(self) -> int:
            return 0

        def get_offset(self) -> int:
            return self.offset

        def set_offset(self, offset: int) -> None:
            self.offset = offset

    generator = Generator()
    drawn = keys.draw_seed(generator)  # type: ignore[arg-type]
    assert drawn == 0xE169C58D_6627E8D5  # words 0 and 1 of Philox's published answer to zeros
    assert generator.offset == 4
    assert keys.draw_seed(generator) != drawn  # type: ignore[arg-type]
