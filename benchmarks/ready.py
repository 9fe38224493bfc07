"""``python benchmarks/ready.py``: whether ``make gpu`` can run here; one line says what is missing.

Imports nothing that may not be there.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from importlib.util import find_spec

PACKAGES = ("torch", "triton", "setuptools", "pybind11", "pytest")
TOOLS = ("cmake", "ninja")  # Python packages that bring a program, or the program itself


def missing() -> str:
    """What ``make gpu`` lacks; empty if nothing."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    lacking += [name for name in TOOLS if find_spec(name) is None and shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)}: {sys.executable} -m pip install {' '.join(lacking)}"
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except Exception as error:  # of several types: no driver, one too old, a build without CUDA
        return f"a GPU that torch can use: {' '.join(str(error).split())}"
    return ""


if __name__ == "__main__":
    if what := missing():
        raise SystemExit(f"make gpu needs {what}")
