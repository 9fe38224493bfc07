"""Models straight to disk: a model's entries, made in ranges, as safetensors.

In: a model or Plan, and a directory. Out: safetensors files, or those of torch.distributed.checkpoint.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes,
variance.
"""

from typing import TYPE_CHECKING, Any

# Users are told of ``checkpoint.write``.
from fastinit.checkpoint.planning import Layout, layout
from fastinit.checkpoint.writing import Rates, Written, measure_rates, write

if TYPE_CHECKING:
    from fastinit.checkpoint.dcp import PlanReader as PlanReader
    from fastinit.checkpoint.dcp_writing import write_dcp as write_dcp

__all__ = [  # and PlanReader and write_dcp, which are imported when they are asked for
    "Layout",
    "Rates",
    "Written",
    "layout",
    "measure_rates",
    "write",
]


def __getattr__(name: str) -> Any:
    """What needs torch.distributed.checkpoint, which is not imported before it is asked for."""
    if name == "PlanReader":
        from fastinit.checkpoint.dcp import PlanReader

        return PlanReader
    if name == "write_dcp":
        from fastinit.checkpoint.dcp_writing import write_dcp

        return write_dcp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
