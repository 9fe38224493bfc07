"""fastinit: weight initialisation at memory speed, the same bits everywhere."""

import sys

__distribution__ = "torch-fastinit"  # installed.py looks for it: another's __init__ has none

from fastinit.base import program as program  # before what takes time: Ctrl-C

# isort: split
from fastinit.base import installed as installed  # it looks whether what follows is ours

# isort: split
from typing import TYPE_CHECKING, Any

from fastinit import backends, init
from fastinit.backends.choose import backend
from fastinit.backends.installation import info, version
from fastinit.backends.slow import SlowBackendWarning
from fastinit.base.number import NumberRangeError, NumberTypeError
from fastinit.elements.part import Part
from fastinit.fills import agreement  # users set fastinit.agreement.check
from fastinit.fills import operator as ops  # and call fastinit.ops.fill_ with a window
from fastinit.variance.lsuv import schedules

if TYPE_CHECKING:
    from fastinit import recipes
    from fastinit.fills.blocks import Blocks
    from fastinit.patching import patch, patched, unpatch
    from fastinit.plan.fill import Fill
    from fastinit.plan.master import master_
    from fastinit.plan.plan import Plan
    from fastinit.record.audit import Audit, audit
    from fastinit.record.block import deferred
    from fastinit.record.materialize import materialize_, recorded_plan
    from fastinit.record.missing import fill_missing_
    from fastinit.record.refused import DeferredError
    from fastinit.statistics.product import linear_moments
    from fastinit.statistics.tensor import ChannelMoments, Moments, moments, moments_many
    from fastinit.variance.coord.check import coord_check
    from fastinit.variance.coord.result import CoordCheck
    from fastinit.variance.lsuv.affine import LSUVError
    from fastinit.variance.lsuv.lsuv import lsuv_
    from fastinit.variance.lsuv.ranks import ScaledAloneWarning
    from fastinit.variance.lsuv.result import LSUVResult
    from fastinit.variance.run.run import Run
    from fastinit.variance.transfer import transfer_scale_
    from fastinit.variance.watch.watch import watch

# What is not imported before somebody asks for it: a fill needs no recipes, and no LSUV.
_LATER = {
    "fastinit": "recipes",
    "fastinit.fills.blocks": "Blocks",
    "fastinit.patching": "patch patched unpatch",
    "fastinit.plan.fill": "Fill",
    "fastinit.plan.master": "master_",
    "fastinit.plan.plan": "Plan",
    "fastinit.record.audit": "Audit audit",
    "fastinit.record.block": "deferred",
    "fastinit.record.materialize": "materialize_ recorded_plan",
    "fastinit.record.missing": "fill_missing_",
    "fastinit.record.refused": "DeferredError",
    "fastinit.statistics.product": "linear_moments",
    "fastinit.statistics.tensor": "ChannelMoments Moments moments moments_many",
    "fastinit.variance.lsuv.affine": "LSUVError",
    "fastinit.variance.coord.check": "coord_check",
    "fastinit.variance.coord.result": "CoordCheck",
    "fastinit.variance.lsuv.lsuv": "lsuv_",
    "fastinit.variance.lsuv.ranks": "ScaledAloneWarning",
    "fastinit.variance.lsuv.result": "LSUVResult",
    "fastinit.variance.run.run": "Run",
    "fastinit.variance.transfer": "transfer_scale_",
    "fastinit.variance.watch.watch": "watch",
}
_HOME = {name: module for module, names in _LATER.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if _HOME[name] == __name__:
        return import_module(f"{__name__}.{name}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Modules that users are told of, wherever they live: ``from fastinit.ops import Window`` works too.
sys.modules.update(
    {f"{__name__}.{name}": globals()[name] for name in ("agreement", "ops", "schedules")}
)

__version__ = version()
__all__ = [
    "Audit",
    "Blocks",
    "ChannelMoments",
    "CoordCheck",
    "DeferredError",
    "Fill",
    "LSUVError",
    "LSUVResult",
    "Moments",
    "NumberRangeError",
    "NumberTypeError",
    "Part",
    "Plan",
    "Run",
    "ScaledAloneWarning",
    "SlowBackendWarning",
    "agreement",
    "audit",
    "backend",
    "backends",
    "coord_check",
    "deferred",
    "fill_missing_",
    "info",
    "init",
    "linear_moments",
    "lsuv_",
    "master_",
    "materialize_",
    "moments",
    "moments_many",
    "ops",
    "patch",
    "patched",
    "recipes",
    "recorded_plan",
    "schedules",
    "transfer_scale_",
    "unpatch",
    "watch",
]
