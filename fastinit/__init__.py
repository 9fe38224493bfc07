"""fastinit: weight initialisation at memory speed, the same bits everywhere."""

import sys

__distribution__ = "torch-fastinit"  # installed.py looks for it: another's __init__ has none

from fastinit.base import installed as installed  # first: it looks whether what follows is ours

# isort: split
from fastinit import backends, init, recipes
from fastinit.backends.choose import backend
from fastinit.backends.installation import info, version
from fastinit.backends.slow import SlowBackendWarning
from fastinit.base.number import NumberRangeError, NumberTypeError
from fastinit.elements.part import Part
from fastinit.fills import agreement  # users set fastinit.agreement.check
from fastinit.fills import operator as ops  # and call fastinit.ops.fill_ with a window
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
from fastinit.variance import schedules
from fastinit.variance.affine import LSUVError
from fastinit.variance.coord_check import coord_check
from fastinit.variance.coord_result import CoordCheck
from fastinit.variance.lsuv import lsuv_
from fastinit.variance.lsuv_result import LSUVResult
from fastinit.variance.run import Run
from fastinit.variance.transfer import transfer_scale_
from fastinit.variance.watch import watch

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
