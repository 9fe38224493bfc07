"""Memory: what is free, where control groups set limits and page cache fills them."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastinit.base import memory

GIB = 1 << 30


def group(place: Path, version: int, limit: int | None, used: int, **stat: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current") if version == 2 else
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )  # fmt: skip
    none = "max" if version == 2 else str(2**63 - 4096)
    (place / names[0]).write_text(f"{none if limit is None else limit}\n")
    (place / names[1]).write_text(f"{used}\n")
    prefix = "total_" if version == 1 else ""
    lines = [f"anon {used - sum(stat.values())}", *(f"{prefix}{k} {v}" for k, v in stat.items())]
    (place / "memory.stat").write_text("\n".join(lines) + "\n")


def left(system: Path, line: str) -> int:
    (system / "proc/self").mkdir(parents=True, exist_ok=True)
    (system / "proc/self/cgroup").write_text(f"11:cpu,cpuacct:/x\n{line}\n")
    return min(memory._left_in_groups(system))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["", "user/job"])
def test_page_cache_is_free(version: int, place: str, tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    line = f"0::/{place}" if version == 2 else f"4:memory:/{place}"
    group(top, version, None, 3 * GIB)
    group(top / place, version, 4 * GIB, 4 * GIB, inactive_file=2 * GIB, active_file=GIB)
    assert left(tmp_path, line) == 3 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_of_all_groups_counts(version: int, tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    line = "0::/user/job/step" if version == 2 else "4:memory:/user/job/step"
    group(top, version, None, 9 * GIB)
    group(top / "user", version, 8 * GIB, 7 * GIB, inactive_file=GIB)
    group(top / "user/job", version, 16 * GIB, 6 * GIB)
    group(top / "user/job/step", version, None, GIB)
    assert left(tmp_path, line) == 2 * GIB


@pytest.mark.parametrize("line", ["0::/docker/12ab", "4:memory:/docker/12ab"])
def test_a_container_that_sees_its_own_group_only(line: str, tmp_path: Path) -> None:
    version = 2 if line.startswith("0") else 1
    top = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    group(top, version, 2 * GIB, GIB, active_file=GIB // 2, slab_reclaimable=0)
    assert left(tmp_path, line) == 3 * GIB // 2


def test_a_hybrid_and_none(tmp_path: Path) -> None:
    group(tmp_path / "sys/fs/cgroup/unified/job", 2, GIB, GIB // 2)
    assert left(tmp_path, "0::/job") == GIB // 2
    assert list(memory._left_in_groups(tmp_path / "nowhere")) == []


def test_the_refusal_names_what_lets_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.OVERRIDE, "1GB")
    assert memory.available_bytes() == 10**9
    with pytest.raises(ValueError, match=r"the values take 2\.0 GB, but 1\.0 GB") as raised:
        memory.check_room(2 * 10**9 - 1, "the values")
    name, value = next(w for w in str(raised.value).split() if "=" in w).split("=")
    monkeypatch.setenv(name, value)
    memory.check_room(2 * 10**9 - 1, "the values")
    monkeypatch.setenv(memory.OVERRIDE, "much")
    with pytest.raises(ValueError, match="FASTINIT_FREE_MEMORY must be as in 5GB"):
        memory.available_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_available_memory_is_some_of_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(memory.OVERRIDE, raising=False)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = memory.available_bytes()
    assert free is not None
    assert 0 < free < total


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_a_block_without_it(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with memory.no_collection():
            with memory.no_collection():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


LIKE = {
    "rows": lambda x: x,
    "columns": lambda x: x.t(),
    "channels last": lambda x: x.view(2, 3, 4, 1).to(memory_format=torch.channels_last),
    "one of a size, with its own stride": lambda x: x.as_strided((6, 1, 4), (4, 17, 1)),
    "expanded": lambda x: x[:, :1].expand(6, 5),
    "every other": lambda x: x[::2, ::2],
    "none": lambda x: x[:0],
    "a number": lambda x: x[0, 0],
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", LIKE)
def test_memory_like_a_tensor_is_torch_s(case: str, device: str) -> None:
    def about(tensor: Tensor) -> object:
        strides = [s for n, s in zip(tensor.shape, tensor.stride()) if n > 1]  # others are no steps
        return tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad

    tensor = LIKE[case](torch.zeros(6, 4, device=device))
    assert about(memory.like(tensor)) == about(torch.empty_like(tensor))
    asked = {"device": "cpu", "dtype": torch.bfloat16}
    assert about(memory.like(tensor, **asked)) == about(torch.empty_like(tensor, **asked))
