"""Each model in a process of its own: a fork of one that has imported what they need, with limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import resource
import signal
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 90.0
"""For one model."""
MEMORY = 4 << 30
"""Bytes for one model, with some 1 GiB for what is imported."""


def prepare() -> None:
    """To be called before anything of torch is imported.

    Nothing is fetched: weights that a constructor wants to download are a reason to skip it.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not be there behind a fork
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    _operators_of_torchvision()


def packages(names: list[str]) -> dict[str, Any]:
    """Of each package its version and its cases, or why there are none."""
    from sweep.examine import examine
    from sweep.packages import PACKAGES

    assert examine  # imported once, here
    found: dict[str, Any] = {}
    for package in names:
        cases = PACKAGES[package]
        try:
            of_it = cases()
            with contextlib.suppress(Exception):
                next(iter(of_it.values()))()()  # imports what all of them need, once
            [name] = set(importlib.metadata.packages_distributions()[package])
            found[package] = {"version": importlib.metadata.version(name), "cases": of_it}
        except Exception:
            found[package] = {"version": None, "cases": {}}
    return found


def examined(
    find: Callable[[], Any], log: Path, further: Sequence[str] = ()
) -> dict[str, Any] | None:
    """As :func:`sweep.examine.examine`, in a process of its own.

    Args:
        log: where what the model prints is appended.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, find, log, further))
    process.start()
    send.close()
    try:
        if not receive.poll(SECONDS):
            return {"outcome": "skipped", "why": f"more than {SECONDS:.0f} s"}
        answer: dict[str, Any] | None = receive.recv()
        return answer
    except EOFError:
        process.join()
        return {"outcome": "skipped", "why": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        receive.close()


def _answer(send: Connection, find: Callable[[], Any], log: Path, further: Sequence[str]) -> None:
    from sweep.examine import examine

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log.open("a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    send.send(examine(find, further))
    send.close()


def _operators_of_torchvision() -> None:
    """Schemas of its operators where they can't be loaded, as of a wheel for CUDA beside another torch.

    It can't be imported without these, and no constructor runs one.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
