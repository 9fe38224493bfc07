"""Who writes and measures where: the contract, the kernels, and the choice among them.

In: writes and readings, checked. Out: bits in memory.
It may import base, elements, stream.
"""

# Users are told of ``backends.register`` and ``backends.native``.
from fastinit.backends.choose import BACKENDS, backend, info, native, register

__all__ = [
    "BACKENDS",
    "backend",
    "info",
    "native",
    "register",
]
