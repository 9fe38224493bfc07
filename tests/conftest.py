"""What holds for every test, whatever ran before it, with whatever else, and however long it takes.

Where there is no GPU, triton runs in its interpreter: to be said before anything imports it.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# What is imported and collected, half a million objects, stays. Whoever walks all objects, as
# Python's collector and deferred() do, would walk these in each test: they are set apart.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Iterator[None]:
    """Nobody looks for examples in tests, which takes seconds."""
    found = yield
    return [f for f in found if type(f) is pytest.Module or not file_path.name.startswith("test_")]


@pytest.fixture(autouse=True, scope="module")
def _what_was_before_is_apart() -> None:
    """So is what the modules before have left: further imports, programs that were decoded."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


# Tests that run themselves, or a helper, in a process of its own find there what they import.
_paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))

# As many threads in all as there are, unless somebody says how many each process has.
if "OMP_NUM_THREADS" not in os.environ:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

with contextlib.suppress(ImportError):  # the tests that need a GPU do without it
    from hypothesis import settings

    # How long an example takes is the machine's matter, and what else it has to do.
    settings.register_profile("suite", deadline=None)
    settings.load_profile("suite")

OURS = ("FASTINIT_", "OMP_", "TRITON_")


def shared() -> dict[str, Any]:
    """What the tests of a process share: had one changed it, the next would see another world."""
    from fastinit.backends import choose as backends

    module = backends.native.module
    return {
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_default_device()": torch.get_default_device(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.nn.init": {name: getattr(torch.nn.init, name) for name in torch.nn.init.__all__},
        "torch.distributed's group": torch.distributed.is_available()
        and torch.distributed.is_initialized(),
        "nn.Module.register_parameter": torch.nn.Module.register_parameter,
        "fastinit's backends": list(backends.BACKENDS),
        "fastinit's forced backend": backends.forced(),
        "the native module and its CPU build": (module, module and module.isa()),
        "the environment": {k: v for k, v in os.environ.items() if k.startswith(OURS)},
        "the directory": os.getcwd(),
        "sys.path": list(sys.path),
    }


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Each test draws the same numbers from torch, and leaves the process as it found it."""
    # torch.manual_seed would note the stack for GPUs that are not there: half a millisecond a test.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    before = shared()
    yield
    after = shared()
    changed = [what for what in before if before[what] != after[what]]
    assert not changed, f"it is left changed: {', '.join(changed)}"
