"""fastinit: weight initialisation at memory speed, the same bits everywhere."""

from fastinit import init
from fastinit.backends import backend, info, version
from fastinit.fill import Fill
from fastinit.moments import Moments, moments, moments_many
from fastinit.patching import patch, patched, unpatch
from fastinit.plan import Plan

__version__ = version()
__all__ = [
    "Fill",
    "Moments",
    "Plan",
    "backend",
    "info",
    "init",
    "moments",
    "moments_many",
    "patch",
    "patched",
    "unpatch",
]
