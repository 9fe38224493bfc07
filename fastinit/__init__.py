"""fastinit: weight initialisation at memory speed, the same bits everywhere."""

__distribution__ = "torch-fastinit"  # installed.py looks for it: another's __init__ has none

from fastinit import installed as installed  # first: it looks whether what follows is ours

# isort: split
from fastinit import init, recipes, schedules
from fastinit.backends import backend, info, version
from fastinit.deferred import deferred
from fastinit.fill import Fill
from fastinit.lsuv import LSUVError, LSUVResult, lsuv_, transfer_scale_
from fastinit.materialize import materialize_, recorded_plan
from fastinit.moments import Moments, moments, moments_many
from fastinit.number import NumberRangeError, NumberTypeError
from fastinit.patching import patch, patched, unpatch
from fastinit.plan import Plan
from fastinit.product_moments import linear_moments
from fastinit.recorder import DeferredError
from fastinit.slow import SlowBackendWarning
from fastinit.watch import watch

__version__ = version()
__all__ = [
    "DeferredError",
    "Fill",
    "LSUVError",
    "LSUVResult",
    "Moments",
    "NumberRangeError",
    "NumberTypeError",
    "Plan",
    "SlowBackendWarning",
    "backend",
    "deferred",
    "info",
    "init",
    "linear_moments",
    "lsuv_",
    "materialize_",
    "moments",
    "moments_many",
    "patch",
    "patched",
    "recipes",
    "recorded_plan",
    "schedules",
    "transfer_scale_",
    "unpatch",
    "watch",
]
