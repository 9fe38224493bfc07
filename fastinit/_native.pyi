"""Types of csrc/module.cpp."""

from collections.abc import Sequence

MAX_DIMS: int
__version__: str
compiler: str
cuda_archs: str
cuda_missing: str

class Fill:
    def __init__(self, law: int, dtype: int, params: Sequence[float]) -> None: ...

_Ints = Sequence[int]

def fill_contiguous(
    fill: Fill, data: int, n: int, seed: int, stream: int, threads: int, /
) -> None: ...
def fill_many(
    requests: Sequence[tuple[Fill, int, int, int, int, _Ints, _Ints, _Ints]], threads: int, /
) -> None: ...
def isa() -> str: ...
def isas() -> dict[str, bool]: ...
def force_isa(name: str, /) -> None: ...
