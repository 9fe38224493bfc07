"""Checkpoints: what a kill, a full disk or a second writer leaves never looks whole, and is resumed."""

import errno
import fcntl
import os
import re
import shutil

import pytest
import torch
import warm
from stored_models import contents, family, recorded, run, small_chunks
from torch import nn

from fastinit.base import files
from fastinit.checkpoint import safetensors as checkpoint_files
from fastinit.checkpoint import writing as checkpoint

__all__ = ["small_chunks"]  # a fixture

safetensors = pytest.importorskip("safetensors.torch")


def test_resuming_gives_the_files_of_an_uninterrupted_run(tmp_path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    checkpoint.write(family("llama"), whole, shard_size="6KB")
    calls = []

    def stop_at_the_fourth_shard(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(
            family("llama"), folder, shard_size="6KB", progress=stop_at_the_fourth_shard
        )
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 3
    assert not list(folder.glob(".*"))
    assert not (folder / checkpoint_files.INDEX).exists()
    times = [path.stat().st_mtime_ns for path in shards]
    done = checkpoint.write(family("llama"), folder, shard_size="6KB")
    assert done.kept == 3
    assert [path.stat().st_mtime_ns for path in shards] == times
    assert contents(folder) == contents(whole)
    assert checkpoint.write(family("llama"), folder, shard_size="6KB").bytes == 0
    damaged = bytearray(shards[1].read_bytes())
    damaged.pop()
    shards[1].write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.write(family("llama"), folder, shard_size="6KB")


def test_sigkill_leaves_nothing_that_looks_whole(tmp_path) -> None:
    """Killed at four moments between the beginning and the end of writing 24 shards."""
    code = """
        import glob, os, signal, sys, time, warnings
        warnings.simplefilter("ignore")
        from torch import nn
        from fastinit.checkpoint import writing as checkpoint
        from fastinit import deferred

        with deferred(7):
            model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(24)))
        for i, directory in enumerate(sys.argv[1:]):
            process = os.fork()
            if not process:
                checkpoint.write(model, directory, shard_size="2MB")
                os._exit(0)
            while len(glob.glob(directory + "/*.safetensors")) <= 5 * i:
                time.sleep(0.0005)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    """

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(512, 512) for _ in range(24)))

    whole = checkpoint.write(recorded(make), tmp_path / "whole", shard_size="2MB")
    sizes = {shard.file: shard.size for shard in whole.layout.shards}
    assert len(sizes) == 24
    folders = [tmp_path / f"killed-{i}" for i in range(4)]
    run(code, *folders)
    interrupted = 0
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        for name in names & sizes.keys():
            assert (folder / name).stat().st_size == sizes[name]
        if checkpoint_files.INDEX in names:
            assert names >= sizes.keys()
        else:
            interrupted += 1
        checkpoint.write(recorded(make), folder, shard_size="2MB")
        assert contents(folder) == contents(tmp_path / "whole")
    assert interrupted


def test_another_model_in_the_directory_is_refused(tmp_path) -> None:
    def linear() -> nn.Module:
        return nn.Linear(64, 64)

    checkpoint.write(recorded(linear), tmp_path, shard_size="10KB")
    before = contents(tmp_path)
    for model, options, message in (
        (recorded(linear, 8), {}, "written with seed 7, not 8; --overwrite"),
        (recorded(linear), {"dtype": torch.float16}, "dtypes float32, not float16"),
        (recorded(lambda: nn.Linear(64, 32)), {}, "another plan or of another model"),
        (recorded(linear), {"shard_size": "5GB"}, "another shard size"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint.write(model, tmp_path, **{"shard_size": "10KB", **options})
        assert contents(tmp_path) == before
    done = checkpoint.write(recorded(linear, 8), tmp_path, overwrite=True)
    assert done.kept == 0
    assert sorted(contents(tmp_path)) == [checkpoint_files.SINGLE]
    safetensors.save_file({"weight": torch.ones(2)}, tmp_path / checkpoint_files.SINGLE)
    with pytest.raises(ValueError, match="not written by fastinit"):
        checkpoint.write(recorded(linear, 8), tmp_path)


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"0.00 GB free, but the checkpoint takes"):
        checkpoint.write(recorded(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch) -> None:
    write, calls = os.pwrite, []

    def fail_later(*arguments) -> int:
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fail_later)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(recorded(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_written_to_by_one_run_at_a_time(tmp_path) -> None:
    """The second fails, and the first goes on."""
    refused = []

    def again(done: int, total: int) -> None:
        with pytest.raises(OSError, match="by another run"):
            checkpoint.write(recorded(), tmp_path)
        refused.append(done)

    checkpoint.write(recorded(), tmp_path, progress=again)
    assert refused
    assert checkpoint.write(recorded(), tmp_path, verify=True).bytes == 0


def test_what_the_user_has_in_the_directory_stays(tmp_path) -> None:
    (tmp_path / ".fastinit-mine").mkdir()
    (tmp_path / ".fastinit-mine" / "notes").write_text("mine")
    for name in (".fastinit-file", ".model.safetensors.partial", ".model-2.partial", "model.txt"):
        (tmp_path / name).write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    left = files.partial_path(tmp_path / "model.safetensors")
    left.write_text("of a killed run")
    other = left.with_name(left.name.replace(files._machine(), "f" * 16))
    other.write_text("of another machine")
    with pytest.warns(UserWarning, match=re.escape(other.name)):
        checkpoint.write(recorded(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == before | {other.name, checkpoint_files.SINGLE}
    assert (tmp_path / ".fastinit-mine" / "notes").read_text() == "mine"


def test_two_writers_that_do_not_see_each_other(tmp_path, monkeypatch) -> None:
    """On a file system without locks: the second begins, and is killed, while the first writes."""
    checkpoint.write(recorded(), tmp_path / "whole")
    folder = tmp_path / "both"

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    second = []

    def meanwhile(done: int, total: int) -> None:
        code = """
            import errno, fcntl, os, signal, sys
            from fastinit.checkpoint import writing as checkpoint
            from tests.stored_models import recorded
            def no_locks(*args):
                raise OSError(errno.ENOLCK, "No locks available")
            fcntl.flock, write = no_locks, os.pwrite
            def killed(descriptor, data, at):
                write(descriptor, data[:512], at)
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite = killed
            checkpoint.write(recorded(), sys.argv[1])
        """
        second.append(warm.run(code, folder).returncode)

    checkpoint.write(recorded(), folder, progress=meanwhile)
    assert second == [-9]
    name = checkpoint_files.SINGLE
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", [checkpoint_files.SINGLE, checkpoint_files.INDEX, "config.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_named(tmp_path, name: str, overwrite: bool) -> None:
    for kind in ("directory", "link to nowhere"):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "directory":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to("nowhere")
        with pytest.raises(ValueError, match=f"has {name} in it, which is no file"):
            checkpoint.write(recorded(), folder, overwrite=overwrite)
        assert [path.name for path in folder.iterdir()] == [name]
