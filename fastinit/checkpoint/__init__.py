"""Models straight to disk: a model's entries, made in ranges, as safetensors.

In: a model or Plan, and a directory. Out: safetensors files.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes,
variance.
"""

# Users are told of ``checkpoint.write``.
from fastinit.checkpoint.planning import Layout, layout
from fastinit.checkpoint.writing import Rates, Written, measure_rates, write

__all__ = [
    "Layout",
    "Rates",
    "Written",
    "layout",
    "measure_rates",
    "write",
]
