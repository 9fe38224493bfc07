"""Number formats that values may be converted to, and from where on each rounds to what.

Rounding is to nearest, ties to even, from the value itself. Of scaled formats the value is first divided
by its scale, exactly:

- by tensor: float32(absmax / the format's largest number), as "current scaling" of FP8 has it;
- by block of 32 (OCP Microscaling Formats MX v1.0, section 6.3): 2^(floor(log2 absmax) - the exponent of
  the element format's largest number), within E8M0's 2^-127 to 2^127;
- by block of 16 (NVFP4): E4M3(float32(absmax / 6) / s) s, with s = float32(absmax of the tensor /
  (6 * 448)) and everything up to E4M3 in float32. E4M3 may be subnormal or 0: a block whose scale
  rounds to 0 gives back nothing but 0. So it is in TransformerEngine, which trains in NVFP4
  (common/cast/nvfp4/core_nvfp4.cuh; it multiplies by reciprocals: the last bit before E4M3 may differ).
  torchao's NVFP4Tensor (nvfp4_quantize) takes at least 2^-6 in place of such a scale.

Only finite values enter an absmax. Blocks lie along the last dimension; its last one may be shorter, as
if filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastinit.base.number import flag

UNSCALED, BY_TENSOR, BY_POWER, BY_E4M3 = range(4)
"""How a format is scaled, as in csrc/counts.h."""


class Format(NamedTuple):
    """A floating-point format.

    Attributes:
        mantissa: bits of it.
        least: the exponent of the least normal number.
        largest: the largest finite number.
        scaling, block: how it is scaled, and how many values share a scale; of others 0.
    """

    mantissa: int
    least: int
    largest: float
    scaling: int = UNSCALED
    block: int = 0

    @property
    def kept(self) -> float:
        """Magnitudes up to this one are flushed: half of the least subnormal number, a tie with 0."""
        return 2.0 ** (self.least - self.mantissa - 1)

    @property
    def normal(self) -> float:
        """Magnitudes from this one on round to normal numbers."""
        return 2.0**self.least - self.kept

    @property
    def exponent(self) -> int:
        """Of the largest number."""
        return _exponent(self.largest)

    @property
    def over(self) -> float:
        """Magnitudes above this one round, in a wider format, to more than the largest number."""
        return self.largest + 2.0 ** (self.exponent - self.mantissa - 1)

    @property
    def over_itself(self) -> bool:
        """Whether ``over`` does too, as a tie that an odd mantissa leaves."""
        return bool(int(self.largest * 2.0 ** (self.mantissa - self.exponent)) % 2)

    def numbers(self) -> tuple[float, float, float, bool, int, int, float, int]:
        """What kernels take (Format in csrc/counts.h)."""
        bounds = self.kept, self.normal, self.over, self.over_itself
        return *bounds, self.scaling, self.block, self.largest, self.exponent


def _exponent(value: float) -> int:
    return int(value).bit_length() - 1


E4M3, E5M2 = (3, -6, 448.0), (2, -14, 57344.0)
FORMATS = {
    "float16": Format(10, -14, 65504.0),
    "bfloat16": Format(7, -126, 2.0**128 - 2.0**120),
    "e4m3": Format(*E4M3),
    "e5m2": Format(*E5M2),
    "e4m3_tensor": Format(*E4M3, BY_TENSOR),
    "e5m2_tensor": Format(*E5M2, BY_TENSOR),
    "mxfp8": Format(*E4M3, BY_POWER, 32),
    "mxfp8_e5m2": Format(*E5M2, BY_POWER, 32),
    "mxfp6_e2m3": Format(3, 0, 7.5, BY_POWER, 32),
    "mxfp6_e3m2": Format(2, -2, 28.0, BY_POWER, 32),
    "mxfp4": Format(1, 0, 6.0, BY_POWER, 32),
    "nvfp4": Format(1, 0, 6.0, BY_E4M3, 16),
}
"""By name. OCP 8-bit floating point (OFP8) v1.0 for E4M3 and E5M2; OCP MX v1.0, table 1, for the mx
ones, of which "mxfp8" has E4M3 elements."""

BLOCK = 32
"""Values that hold whole blocks of every format."""
SHARES = ("flushed", "saturated", "subnormal")
"""What is counted for each format, in this order."""
BINS = 255
"""Of a histogram: as float32's exponents, the first one with all that is smaller and not 0."""
FIRST_EXPONENT = -127
"""Of the first bin, which holds magnitudes below 2^-126. Bin i holds [2^(i - 127), 2^(i - 126)), and the
last one all finite from 2^127 on."""


class Counting(NamedTuple):
    """What is counted of a tensor: ``SHARES`` of each format, then the bins of the histogram."""

    formats: tuple[str, ...] = ()
    histogram: bool = False

    @classmethod
    def of(cls, formats: Sequence[str], histogram: bool) -> Counting:
        """Checked.

        Raises:
            TypeError: ``formats`` is a text or no sequence, or ``histogram`` no bool.
            ValueError: a format that is not known, or twice.
        """
        if formats == () and histogram is False:  # nearly always, and small tensors are quick
            return NOTHING
        if isinstance(formats, str) or not isinstance(formats, Iterable):
            raise TypeError(f"formats must be a sequence of names, but got {formats!r}")
        histogram, names = flag("histogram", histogram), tuple(formats)
        for name in names:
            if not isinstance(name, str) or name not in FORMATS or names.count(name) > 1:
                known = ", ".join(FORMATS)
                raise ValueError(f"formats must be some of {known}, each once, but got {name!r}")
        return cls(names, histogram)

    @property
    def rows(self) -> tuple[Format, ...]:
        """The formats."""
        return tuple(FORMATS[name] for name in self.formats)

    @property
    def width(self) -> int:
        """How many numbers these are; 0: nothing is counted."""
        return len(SHARES) * len(self.formats) + BINS * self.histogram

    @property
    def is_scaled(self) -> bool:
        """Whether a value's neighbours change what becomes of it."""
        return any(row.scaling != UNSCALED for row in self.rows)

    @property
    def needs_largest(self) -> bool:
        """Whether the largest magnitude of all values decides a scale, and has to be known before."""
        return any(row.scaling in (BY_TENSOR, BY_E4M3) for row in self.rows)

    @property
    def in_blocks(self) -> bool:
        """Whether values of the last dimension share scales."""
        return any(row.block for row in self.rows)


NOTHING = Counting()
"""Is counted."""
