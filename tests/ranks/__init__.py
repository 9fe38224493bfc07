"""Processes over gloo, 2 to 8, that tests run functions on: started once, when first asked for.

    @on_ranks(4)
    def test_something(x):      # runs on each of four ranks, with the test's arguments
        ...

    answers = pool(4).run(function, *arguments)     # what it returned on each rank

One process imports torch, what FSDP2 imports late, and fastinit; ranks are forked from it, which is
cheap. The ranks of one size stay, so that a call takes a millisecond, until one fails: then there are
new ones. The groups that a test makes end with it; what else it does to its rank (generators) should not
matter to others. ``Ranks(4)`` as a context gives processes that nobody else has, to be killed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import inspect
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any, TypeVar

import warm

TIMEOUT = 300.0  # seconds, of one call and of torch's collectives: far more than any takes
GRACE = 5.0  # for the other ranks, when one has failed

Function = TypeVar("Function", bound=Callable[..., Any])


class RankFailed(AssertionError):
    """What failed on which rank, with its traceback."""


class Ranks:
    """So many processes with a process group, forked at the first call."""

    groups_end = True
    """Whether those that a call makes end with it; packages may keep theirs for as long as they run."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pids: list[int] = []
        self._ends: list[Connection] = []

    def run(
        self,
        function: Callable[..., Any],
        *args: object,
        timeout: float = TIMEOUT,
        **kwargs: object,
    ) -> list[Any]:
        """What a function of a module returns on each rank.

        Raises:
            RankFailed: it raised on some, or gave no answer in time, or its process ended.
        """
        answers = self.answers(function, *args, timeout=timeout, **kwargs)
        bad = {rank: why for rank, (good, why) in enumerate(answers) if not good}
        if bad:
            raise RankFailed("\n".join(f"rank {rank}: {why}" for rank, why in bad.items()))
        return [answer for _, answer in answers]

    def answers(
        self,
        function: Callable[..., Any],
        *args: object,
        timeout: float = TIMEOUT,
        **kwargs: object,
    ) -> list[tuple[bool, Any]]:
        """Of each rank (True, what it returned) or (False, what happened)."""
        if not self._ends:
            self.pids, self._ends = _forked(self.size)
        where = inspect.unwrap(function)
        task = pickle.dumps((where.__module__, where.__qualname__, args, kwargs))
        for end in self._ends:
            end.send((sys.path, os.getcwd(), task))
        answers: dict[int, tuple[bool, Any]] = {}
        until = time.monotonic() + timeout
        while len(answers) < self.size:
            waiting = {end: rank for rank, end in enumerate(self._ends) if rank not in answers}
            ready = wait(list(waiting), max(until - time.monotonic(), 0))
            if not ready:
                break
            for end in ready:
                answers[waiting[end]] = _received(end)
                if not answers[waiting[end]][0]:
                    until = min(until, time.monotonic() + GRACE)
        if len(answers) < self.size or not all(good for good, _ in answers.values()):
            self.close()
        for end in self._ends if self.groups_end else ():
            end.send(None)
        silent = (False, "gave no answer, and was killed")
        return [answers.get(rank, silent) for rank in range(self.size)]

    def close(self) -> None:
        """Ends the processes; the next call has new ones."""
        for pid, end in zip(self.pids, self._ends):
            end.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.pids, self._ends = [], []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_pools: dict[int, Ranks] = {}


def pool(size: int) -> Ranks:
    """The ranks that all tests share."""
    return _pools.setdefault(size, Ranks(size))


def close_pools() -> None:
    """The tests from here on share others, for what has been done to these is not to be undone."""
    for ranks in _pools.values():
        ranks.close()


def on_ranks(size: int) -> Callable[[Function], Function]:
    """The test runs on so many ranks."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            pool(size).run(function, *args, **kwargs)

        return run  # type: ignore[return-value]

    return decorate


def _received(end: Connection) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = pickle.loads(end.recv_bytes())
    except (EOFError, ConnectionError):
        return False, "its process ended"
    return answer


# --- the process that forks ----------------------------------------------------------------------


def _forked(size: int) -> tuple[list[int], list[Connection]]:
    folder, listener, stem = _stem()
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as store:
        stem.send((size, store.name))
    hello = [_accepted(listener) for _ in range(size)]
    hello.sort(key=lambda said: said[0])
    return [pid for _, pid, _ in hello], [end for _, _, end in hello]


def _accepted(listener: Listener) -> tuple[int, int, Connection]:
    end = listener.accept()
    rank, pid = end.recv()
    return rank, pid, end


@functools.cache
def _stem() -> tuple[str, Listener, Connection]:
    """The process that all ranks are forked from, and a folder for what they meet at."""
    folder = tempfile.mkdtemp(prefix="ranks")
    listener = Listener(str(Path(folder, "socket")), "AF_UNIX")
    atexit.register(lambda: (listener.close(), shutil.rmtree(folder)))
    process = warm.CONTEXT.Process(target=_grow, args=(listener.address, sys.path), daemon=True)
    process.start()
    return folder, listener, listener.accept()


def _grow(address: str, path: list[str]) -> None:
    """In that process."""
    sys.path[:] = path
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    import pytest  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401

    import fastinit  # noqa: F401

    for name in os.environ.get("RANKS_IMPORT", "").split():  # what takes long, once for all ranks
        with contextlib.suppress(ImportError):  # which a rank that needs it will tell
            importlib.import_module(name)
    order = Client(address)
    while True:
        try:
            size, store = order.recv()
        except EOFError:
            os._exit(0)
        for rank in range(size):
            if not os.fork():
                order.close()
                _be(rank, size, store, address)


def _be(rank: int, size: int, store: str, address: str) -> None:
    """In a rank's process, until the tests end."""
    import traceback
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    with Client(address) as end:
        end.send((rank, os.getpid()))
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", f"file://{store}", timedelta(seconds=TIMEOUT), world_size=size, rank=rank
        )
        while True:
            try:
                order = end.recv()
            except EOFError:
                os._exit(0)
            if order is None:
                _leave_groups()
                continue
            try:
                path, folder, task = order
                sys.path[:] = path
                os.chdir(folder)
                module, name, args, kwargs = pickle.loads(task)
                torch.manual_seed(0)
                answer = pickle.dumps((True, _found(module, name)(*args, **kwargs)))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            end.send_bytes(answer)


def _leave_groups() -> None:
    """Ends what groups there are beside the world's: of gloo, each wakes a hundred times a second.

    Torch remembers how it dispatched DTensors, with their meshes.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    propagator = DTensor._op_dispatcher.sharding_propagator
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    propagator.propagate_op_sharding.cache.cache_clear()
    torch._C._clear_DTensor_sharding_propagator_cache()


def _found(module: str, name: str) -> Callable[..., Any]:
    found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    return inspect.unwrap(found)
