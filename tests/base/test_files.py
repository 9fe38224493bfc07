"""Files: what is saved is there whole, or what was there before is."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import fastinit
from fastinit import Fill, Plan
from fastinit.base import files

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")


def save_plan(path: Path) -> None:
    Plan({f"layer.{i}.x{i % 7}": Fill.normal(std=0.1 + i) for i in range(2000)}).save(path)


def deep() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(9)))


def plot_watched(path: Path) -> None:
    model = deep()
    with fastinit.watch(model) as watched:
        model(torch.randn(9, 8))
    watched.plot(path)


# Everything in the package that saves a file of its own, with a size beyond a block.
SAVERS: dict[str, Callable[[Path], object]] = {
    "plan.json": save_plan,
    "watched.png": plot_watched,
    "lsuv.svg": lambda path: fastinit.lsuv_(deep(), torch.randn(99, 8)).plot(path),
    "model.safetensors.index.json": lambda path: files.write_text(path, "x" * 100_000),
}


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system refuses to write more (Python ignores the signal), as a disk does that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
@pytest.mark.parametrize("before", [b"of before", None])
@pytest.mark.parametrize("name", SAVERS)
def test_a_full_disk_changes_nothing(name: str, before: bytes | None, tmp_path: Path) -> None:
    path, save = tmp_path / name, SAVERS[name]
    if not name.endswith("json"):
        pytest.importorskip("matplotlib")
    save(path)  # which now has imported what it needs, and what that caches
    assert path.stat().st_size > 8192
    path.unlink()
    if before is not None:
        path.write_bytes(before)
    with no_file_beyond(8192), pytest.raises(OSError, match="File too large") as raised:
        save(path)
    assert raised.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ([name] if before else [])
    assert before is None or path.read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.call(command, stderr=-3):
        pytest.skip("no permission to mount one")
    yield tmp_path
    subprocess.check_call(["umount", str(tmp_path)])


def test_a_disk_that_is_full(small_disk: Path) -> None:
    path = small_disk / "plan.json"
    small = Plan({"weight": Fill.normal()})
    small.save(path)
    before = path.read_text()
    (small_disk / "other").write_bytes(b"x" * 50_000)
    large = Plan({f"p{i}.w{i % 7}": Fill.normal(std=1.0 + i) for i in range(2000)})
    assert len(large.to_json()) > 1 << 16
    with pytest.raises(OSError, match="No space left on device") as raised:
        large.save(path)
    assert raised.value.filename == str(path)
    assert path.read_text() == before
    assert Plan.load(path) == small
    assert sorted(p.name for p in small_disk.iterdir()) == ["other", "plan.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with files.replacing(path) as file:
            file.write(b"some")
            raise error

    with pytest.raises(error):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


@posix
def test_what_is_replaced_keeps_its_mode_and_a_link_is_followed(tmp_path: Path) -> None:
    path, link = tmp_path / "plan.json", tmp_path / "link.json"
    plan = Plan({"weight": Fill.normal()})
    plan.save(path)
    new = path.stat().st_mode
    (tmp_path / "other").write_text("")
    assert new == (tmp_path / "other").stat().st_mode  # as the umask has it
    path.chmod(0o640)
    link.symlink_to(path)
    plan.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert json.loads(path.read_text())["seed"] == 0
    plan.save(os.devnull)
    assert not Path(os.devnull).is_file()
    with pytest.raises(FileNotFoundError) as raised:
        plan.save(tmp_path / "none" / "plan.json")
    assert raised.value.filename == str(tmp_path / "none" / "plan.json")


@posix
def test_only_what_a_killed_run_of_this_machine_left_is_removed(tmp_path: Path) -> None:
    code = """
        import os, runpy, signal, sys
        with runpy.run_path(sys.argv[3])["replacing"](sys.argv[1]) as file:  # without torch: fast
            file.write(b"some")
            file.flush()
            print("ready", flush=True)
            if sys.argv[2] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            sys.stdin.read()
    """

    def writer(name: str, fate: str) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / name), fate, files.__file__]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    dead = writer("dead", "die")
    dead.communicate()
    (left,) = tmp_path.iterdir()
    foreign = left.name.replace(files._machine(), "0" * 16)
    alive = writer("alive", "live")
    theirs = {
        ".fastinit-notes",
        ".model.safetensors.partial",
        ".fastinit.partial",
        "mine.fastinit-1-2.partial",
        foreign,
    }
    for name in theirs:
        (tmp_path / name).write_text("of the user's")
    (tmp_path / ".fastinit-directory").mkdir()
    try:
        assert [path.name for path in files.remove_left(tmp_path)] == [foreign]
        assert not left.exists()
        names = {path.name for path in tmp_path.iterdir()}
        assert names >= theirs | {".fastinit-directory"}
        assert len(names) == len(theirs) + 2  # the living one's
    finally:
        alive.communicate("")
    assert (tmp_path / "alive").read_bytes() == b"some"
