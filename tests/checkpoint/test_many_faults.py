"""Faults of ranks that write one checkpoint: one that fails is known to all, and nothing looks whole."""

import errno
import inspect
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import warm
from ranks import Ranks, pool
from torch import nn

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from test_many import Net, contents, planned, recorded, whole, write_recorded

from fastinit import Fill, Part, Plan, deferred
from fastinit.base.ranks import RanksError, RanksLost
from fastinit.checkpoint import write_dcp
from fastinit.checkpoint import writing as checkpoint
from fastinit.checkpoint.safetensors import INDEX


def test_an_error_on_one_rank_is_one_on_all_and_a_later_run_goes_on(tmp_path) -> None:
    want = whole(tmp_path / "whole", shard_size="1KB")
    folder = tmp_path / "killed"
    begun = time.monotonic()
    answers = pool(2).run(_failing, str(folder))
    assert time.monotonic() - begun < 30  # nobody waits for a timeout, of 100 s
    assert "No space left" in answers[1]
    assert answers[0].startswith("RanksError: rank 1 failed: OSError: [Errno 28] No space left")
    there = {path.name for path in folder.iterdir()}
    assert INDEX not in there
    assert not [name for name in there if name.startswith(".")]
    left = {name: os.stat(folder / name).st_mtime_ns for name in there}
    assert left
    # With another number of ranks: what is whole is kept, and verified if asked for.
    pool(4).run(write_recorded, str(folder), shard_size="1KB", verify=True)
    assert all(os.stat(folder / name).st_mtime_ns == at for name, at in left.items())
    assert contents(folder) == contents(want)
    name = min(left)
    damaged = bytearray((folder / name).read_bytes())
    damaged[-1] ^= 1
    (folder / name).write_bytes(damaged)
    said = pool(4).run(_refused, str(folder))
    assert len({*said}) == 1
    assert f"{name} is damaged in" in said[0]


def _failing(folder: str) -> str:
    try:
        write_recorded(folder, 1 if dist.get_rank() == 1 else None, shard_size="1KB")
    except (OSError, RanksError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing failed")


def _refused(folder: str) -> str:
    with pytest.raises(ValueError, match="damaged") as caught:
        checkpoint.write(recorded(), folder, shard_size="1KB", verify=True)
    return str(caught.value)


# --- ranks that differ ---------------------------------------------------------------------------


def differing(folder: str, what: str) -> str:
    rank = dist.get_rank()
    model: nn.Module = recorded()
    plan = planned()
    options: dict = {}
    if what == "seed":
        plan = Plan(plan, seed=8 if rank else 7, aliases=plan.aliases, buffers=plan.buffers)
    elif what == "plan" and rank:
        plan = Plan({**plan, "body.1.bias": Fill.normal()}, seed=7, aliases=plan.aliases)
        model.norm = Net().norm
    elif what == "dtype" and rank:
        options["dtype"] = torch.float64
    elif what == "shard size" and rank:
        options["shard_size"] = "1KB"
    elif what == "values":
        torch.manual_seed(rank)
        model, plan = Net(), None
    elif what == "a bad argument on one":
        options["dtype"] = torch.int8 if rank else torch.float32
    with pytest.raises((ValueError, RanksError)) as caught:
        checkpoint.write(model, folder, plan, **options)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("seed", "ranks 0 and 1 differ in the seed: 7 and 8"),
        ("plan", "ranks 0 and 1 differ in the plan of body.1.bias"),
        ("dtype", "ranks 0 and 1 differ in the dtype of experts: float32 and float64"),
        ("shard size", "ranks differ in the files of the checkpoint"),
        ("values", "ranks 0 and 1 differ in the values of experts"),
        ("a bad argument on one", "rank 1 failed: ValueError: dtype must be a floating-point"),
    ],
)
def test_ranks_that_differ_are_told_in_what(tmp_path, what: str, said: str) -> None:
    answers = pool(2).run(differing, str(tmp_path), what)
    assert said in answers[0]
    assert not list(tmp_path.iterdir())


# --- what is wrong on one rank -------------------------------------------------------------------

ON_ONE = {  # of write and write_dcp alike, unless it is the argument of one
    "directory": 3,
    "plan": 3,
    "parts": "w",
    "dtype": torch.int32,
    "dtype, of another kind": "bfloat16",
    "overwrite": True,
    "verify": True,
    "shard_size": "5XB",
    "prefix": "model",
    "prefix, of another kind": 3,
    "prefix, another": "model.",
}


def wrong_on_one(folder: str, form: str, argument: str) -> str:
    call = checkpoint.write if form == "safetensors" else write_dcp
    name = argument.partition(",")[0]
    if name not in inspect.signature(call).parameters:
        return ""
    options: dict = {"directory": folder}
    if dist.get_rank() == 1:
        options[name] = ON_ONE[argument]
    try:
        call(recorded(), **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing failed")


@pytest.mark.parametrize("form", ["safetensors", "dcp"])
def test_an_argument_that_is_wrong_on_one_rank_is_an_error_on_all(tmp_path, form: str) -> None:
    begun = time.monotonic()
    for argument in ON_ONE:
        first, second = pool(2).run(wrong_on_one, str(tmp_path), form, argument)
        name = argument.partition(",")[0]
        assert first in (second, f"RanksError: rank 1 failed: {second}"), argument
        assert not second or name in second.replace(" ", "_") or name == "directory", second
        assert not list(tmp_path.iterdir()), argument
    assert time.monotonic() - begun < 100  # nobody waits for a timeout, each of 100 s


def refused_late(folder: str, form: str) -> str:
    """The first rank refuses what is there while the others have yet to look at the directory."""
    look = Path.exists

    def late(self: Path) -> bool:
        time.sleep(0.3 * (dist.get_rank() > 0))
        return look(self)

    Path.exists = late  # type: ignore[method-assign]
    try:
        call = checkpoint.write if form == "safetensors" else write_dcp
        call(nn.Linear(3, 2), folder)
    except (ValueError, OSError, RanksError) as error:
        return f"{error}"
    finally:
        Path.exists = look  # type: ignore[method-assign]
    raise AssertionError("nothing failed")


@pytest.mark.parametrize("form", ["safetensors", "dcp"])
def test_what_is_there_is_refused_with_the_same_words_on_all(tmp_path, form: str) -> None:
    (checkpoint.write if form == "safetensors" else write_dcp)(nn.Linear(2, 2), tmp_path)
    before = contents(tmp_path)
    for said in pool(4).run(refused_late, str(tmp_path), form):
        assert "overwrite=True" in said
        assert "file system that all ranks share" not in said
    assert contents(tmp_path) == before


def full(folder: str, call: str, values: str) -> str:
    """On the second rank the system has no room left for files of the checkpoint."""
    real = getattr(os, call)

    def fail(descriptor: int, *rest: object) -> object:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, *rest)

    model: nn.Module = recorded()
    parts = None
    if values == "parts":
        parts = {"w": Part((8, 4)).chunk(0, 2, dist.get_rank())}
        model = nn.ParameterDict({"w": torch.ones(4, 4)})
    if dist.get_rank() == 1:
        setattr(os, call, fail)
    try:
        checkpoint.write(model, folder, shard_size="1KB", parts=parts)
    except (OSError, RanksError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        setattr(os, call, real)
    raise AssertionError("nothing failed")


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of open files")
@pytest.mark.parametrize("values", ["a plan", "parts"])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_names_the_file_that_would_have_been(tmp_path, call: str, values: str) -> None:
    first, second = pool(2).run(full, str(tmp_path), call, values)
    assert first == f"RanksError: rank 1 failed: {second}"
    assert re.fullmatch(rf"OSError: .*: '{tmp_path}/model[-0-9a-z]*\.safetensors'", second)
    assert not list(tmp_path.glob(".*"))


# --- ends ----------------------------------------------------------------------------------------


def killed(folder: str, rank: int, after: int) -> str:
    write, published = os.replace, []

    def replace(source: str, target: str) -> None:
        if str(target).endswith(".safetensors"):
            published.append(target)
            if len(published) > after and dist.get_rank() == rank:
                os.kill(os.getpid(), signal.SIGKILL)
        write(source, target)

    os.replace = replace  # type: ignore[assignment]
    with pytest.raises((RanksError, RanksLost)) as caught:
        checkpoint.write(recorded(), folder, shard_size="1KB")
    return f"{caught.value}"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed(tmp_path, rank: int) -> None:
    """The others end with a word, nothing looks whole, and the next run goes on."""
    want = contents(whole(tmp_path / "whole", shard_size="1KB"))
    folder = tmp_path / "killed"
    begun = time.monotonic()
    with Ranks(2) as both:
        answers = both.answers(killed, str(folder), rank, 1)
    assert time.monotonic() - begun < 30
    assert [good for good, _ in answers] == [rank == 1, rank == 0], answers
    assert "ranks lost each other" in answers[1 - rank][1]
    names = {path.name for path in folder.iterdir()}
    assert INDEX not in names
    assert names & want.keys()
    assert all((folder / name).read_bytes() == want[name] for name in names & want.keys())
    pool(2).run(write_recorded, str(folder), shard_size="1KB")
    assert contents(folder) == want


def two_jobs(folder: str, seed: int) -> str:
    """A job of each rank by itself, on a file system without locks, which begin at the same time."""
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    locks, fcntl.flock = fcntl.flock, no_locks  # type: ignore[assignment]
    try:
        with deferred(seed if dist.get_rank() else 7):
            model = Net()
        dist.barrier()
        checkpoint.write(model, folder, shard_size="1KB", no_dist=True)
    except (OSError, ValueError) as error:
        return f"{error}"
    finally:
        fcntl.flock = locks
    return "written"


@pytest.mark.parametrize("seed", [7, 8])
def test_two_jobs_that_do_not_see_each_other(tmp_path, seed: int) -> None:
    """Of the same model they are harmless; of two models at most one is left, or none with an index."""
    want = contents(whole(tmp_path / "whole", shard_size="1KB"))
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        said = pool(2).run(two_jobs, str(folder), seed)
        if seed == 7:
            assert contents(folder) == want
        elif (folder / INDEX).exists():
            seeds = set()
            for path in folder.glob("*.safetensors"):
                with open(path, "rb") as file:
                    size = int.from_bytes(file.read(8), "little")
                    seeds.add(json.loads(file.read(size))["__metadata__"]["fastinit.seed"])
            assert len(seeds) == 1
        if seed == 8:
            assert said.count("written") <= 1 or (folder / INDEX).exists()


def private_place(folders: list[str]) -> str:
    with pytest.raises((OSError, RanksError)) as caught:
        checkpoint.write(recorded(), folders[dist.get_rank()])
    return str(caught.value)


def test_a_directory_that_is_not_shared_is_named(tmp_path) -> None:
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    said = pool(2).run(private_place, folders)
    assert said[1] == f"{folders[1]} must be on a file system that all ranks share"
    assert said[0] == f"rank 1 failed: OSError: {said[1]}"


def test_a_system_without_posix_locks_imports_it_and_says_what_it_lacks(tmp_path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        sys.modules["fcntl"] = None
        del os.pwrite
        import torch
        from fastinit import checkpoint
        print(checkpoint.layout(torch.nn.Linear(2, 2)).elements)
        try:
            checkpoint.write(torch.nn.Linear(2, 2), sys.argv[1])
        except NotImplementedError as error:
            print(error, Path(sys.argv[1]).exists())
    """
    done = warm.run(code, tmp_path / "a")
    assert done.stdout == "6\na checkpoint is written on POSIX systems only False\n", done.stderr
