"""Types of csrc/module.cpp."""

from collections.abc import Sequence

CHUNK: int
CHUNKS: int
FEW: int
LANES: int
MAX_DIMS: int
PARCEL: int
SHORT: int
SLOTS: int
THREADS: int
__version__: str
compiler: str
cuda_archs: str
cuda_missing: str

class PreparedLaw:
    def __init__(self, law: int, dtype: int, params: Sequence[float]) -> None: ...

_Ints = Sequence[int]

def fill_contiguous(
    law: PreparedLaw, data: int, n: int, seed: int, stream: int, threads: int, /
) -> None: ...

_Request = tuple[PreparedLaw, int, int, int, int, _Ints, _Ints, _Ints]

def fill_many(requests: Sequence[_Request], threads: int, /) -> None: ...
def isa() -> str: ...
def isas() -> dict[str, bool]: ...
def force_isa(name: str, /) -> None: ...

class Pieces:
    def __init__(self, requests: Sequence[_Request], /) -> None: ...
    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...
    @property
    def tiles(self) -> int: ...
    # Here and below, in a build with CUDA only:
    @property
    def staged_bytes(self) -> int: ...
    def fill(self, device: int, stream: int, staging: int, /) -> None: ...

_Asked = tuple[int, int, _Ints, _Ints, bool, int]
_Format = tuple[float, float, float, bool, int, int, float, int]

class Counts:
    def __init__(
        self, formats: Sequence[_Format], histogram: bool, asked: Sequence[tuple[_Asked, int]], /
    ) -> None: ...
    def count(self, threads: int, /) -> None: ...

def moments_contiguous(
    dtype: int, data: int, n: int, result: int, higher: bool, threads: int, /
) -> None: ...

class Readings:
    def __init__(self, readings: Sequence[_Asked], higher: bool = False) -> None: ...
    def measure(self, threads: int, /) -> None: ...
    # In a build with CUDA only:
    @property
    def scratch_bytes(self) -> int: ...
    def measure_on(self, device: int, stream: int, scratch: int, /) -> None: ...

nvcc: str

def cuda_driver() -> str: ...
def cuda_missing_on(device: int, /) -> str: ...
