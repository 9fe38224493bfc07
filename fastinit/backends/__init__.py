"""Who writes and measures where: the contract, the kernels, and the choice among them.

In: writes and readings, checked. Out: bits in memory.
It may import base, elements, stream.
"""

# Users are told of ``backends.Backend``, ``backends.register`` and ``backends.native``.
from fastinit.backends.choose import BACKENDS, backend, native, register
from fastinit.backends.contract import Backend
from fastinit.backends.installation import info

__all__ = [
    "BACKENDS",
    "Backend",
    "backend",
    "info",
    "native",
    "register",
]
