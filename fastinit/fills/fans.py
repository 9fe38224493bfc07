"""Fans, gains and standard deviations: from a weight's shape to the law of its values.

Every rule stands here once; :mod:`fastinit.init` applies them to tensors and plans to names. The
two private helpers keep torch's names because other packages import them from ``torch.nn.init``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fastinit.base import number
from fastinit.stream import laws
from fastinit.stream.laws import Law

Fans = tuple[float, float]
"""(fan_in, fan_out): how many inputs feed one output, and how many outputs one input feeds."""

FAN_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
DISTRIBUTIONS = ("truncated_normal", "normal", "uniform")

_UNIT_GAINS = frozenset(
    {
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "sigmoid",
    }
)


def truncated_std(reach: float) -> float:
    """The standard deviation of a standard normal conditioned on [-reach, reach].

    With the density phi and the mass M = erf(reach / sqrt 2), the variance is
    1 - 2 reach phi(reach) / M (Johnson, Kotz & Balakrishnan 1994, section 13.10.1). For 2 it is the
    constant that JAX and TensorFlow divide by in ``variance_scaling``:

    >>> truncated_std(2.0)
    0.8796256610342398
    """
    density = math.exp(-0.5 * reach * reach) / math.sqrt(2.0 * math.pi)
    return math.sqrt(1.0 - 2.0 * reach * density / math.erf(reach / math.sqrt(2.0)))


TRUNCATION = 2.0  # JAX and TensorFlow cut truncated normals at two standard deviations
_TRUNCATED_STD = truncated_std(TRUNCATION)
_ROOT_OF_3 = math.sqrt(3.0)


def fans_of(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [out, in, ...] whose trailing sizes are the receptive field.

    >>> fans_of((16, 8, 3, 3))
    (72, 144)

    Raises:
        ValueError: fewer than 2 dimensions.
    """
    if len(shape) < 2:
        raise ValueError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions, "
            f"but got shape {tuple(shape)}"
        )
    field = math.prod(shape[2:]) if len(shape) > 2 else 1
    return shape[1] * field, shape[0] * field


def check_fans(fan: Fans) -> Fans:
    """The explicit (fan_in, fan_out), if it is a pair of positive finite numbers.

    Raises:
        NumberTypeError: not a pair of numbers.
        NumberRangeError: a number that is not positive and finite.
    """
    if not isinstance(fan, (tuple, list)) or len(fan) != 2:
        raise number.NumberTypeError(
            f"fan must be a pair of numbers (fan_in, fan_out), but got {number.said(fan)}"
        )
    return number.positive("fan[0]", fan[0]), number.positive("fan[1]", fan[1])


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    return fans_of(tensor.shape)


def _calculate_correct_fan(tensor: Tensor, mode: str) -> int:
    mode = _one_fan_mode(mode)
    fan_in, fan_out = fans_of(tensor.shape)
    return fan_in if mode == "fan_in" else fan_out


def _one_fan_mode(mode: str) -> str:
    lowered = mode.lower() if isinstance(mode, str) else mode
    if lowered not in ("fan_in", "fan_out"):
        raise ValueError(
            f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out'] (argument mode)"
        )
    return lowered


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor on the standard deviation that makes up for a nonlinearity.

    linear, conv*, sigmoid: 1; tanh: 5/3; relu: sqrt(2); leaky_relu: sqrt(2 / (1 + param^2)); selu:
    3/4 (which is not the 1 of the self-normalising networks' paper: use linear for that).

    Args:
        nonlinearity: a ``torch.nn.functional`` name.
        param: the negative slope of leaky_relu, by default 0.01; otherwise ignored.

    Raises:
        ValueError: an unknown name.
        NumberTypeError, NumberRangeError: a slope that is no number (a bool is none), or not finite.

    >>> calculate_gain("tanh")
    1.6666666666666667
    """
    return _gain(nonlinearity, param, "param")


def _gain(nonlinearity: str, param: float | None, argument: str) -> float:
    if nonlinearity in _UNIT_GAINS:
        return 1
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else number.multiplier(argument, param, negative=True)
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def xavier_std(fans: Fans, gain: float = 1.0) -> float:
    """gain * sqrt(2 / (fan_in + fan_out)), Glorot & Bengio 2010, equation 12.

    Raises:
        NumberTypeError, NumberRangeError: a gain that is no number; negative, NaN or infinite.
    """
    gain = number.multiplier("gain", gain)
    total = fans[0] + fans[1]
    # A weight without inputs and outputs has no elements, so any std will do.
    return gain * math.sqrt(2.0 / total) if total else 0.0


def kaiming_std(
    fans: Fans, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> float:
    """calculate_gain(nonlinearity, a) / sqrt(fan), He et al. 2015, equations 10 and 14.

    Raises:
        ValueError: an unknown mode or nonlinearity.
        NumberTypeError, NumberRangeError: a slope ``a`` that is no number, or not finite.
    """
    fan = fans[0] if _one_fan_mode(mode) == "fan_in" else fans[1]
    gain = _gain(nonlinearity, a, "a")
    return gain / math.sqrt(fan) if fan else 0.0


def variance_scaling_std(fans: Fans, scale: float = 1.0, mode: str = "fan_in") -> float:
    """sqrt(scale / n), where n is what ``mode`` takes of the fans: the std of the values.

    Args:
        fans: (fan_in, fan_out).
        scale: the variance of an output for inputs of mean square 1, at n = fan_in.
        mode: "fan_in", "fan_out", "fan_avg" (their mean) or "fan_geo_avg" (their geometric mean).

    Raises:
        ValueError: an unknown mode.
        NumberTypeError, NumberRangeError: a scale that is no number; negative, NaN or infinite.
    """
    scale = number.multiplier("scale", scale)
    fan_in, fan_out = fans
    if mode == "fan_in":
        n = float(fan_in)
    elif mode == "fan_out":
        n = float(fan_out)
    elif mode == "fan_avg":
        n = (fan_in + fan_out) / 2
    elif mode == "fan_geo_avg":
        n = math.sqrt(fan_in * fan_out)
    else:
        raise ValueError(f"mode must be one of {', '.join(FAN_MODES)}, but got {mode!r}")
    return math.sqrt(scale / n) if n else 0.0


def variance_scaling(
    fans: Fans,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
) -> Law:
    """The law of mean 0 and std :func:`variance_scaling_std`, as in JAX's ``variance_scaling``.

    The truncated normal is cut at two standard deviations of the normal law that it is cut from,
    and that one is wider by 1 / :func:`truncated_std`, so that the values have the std asked for.

    Raises:
        ValueError: as :func:`variance_scaling_std`; an unknown distribution.
    """
    std = variance_scaling_std(fans, scale, mode)
    if distribution == "uniform":
        return uniform_of_std(std)
    if distribution == "normal":
        return laws.normal(0.0, std)
    if distribution == "truncated_normal":
        std /= _TRUNCATED_STD
        return laws.truncated_normal(0.0, std, -TRUNCATION * std, TRUNCATION * std)
    raise ValueError(
        f"distribution must be one of {', '.join(DISTRIBUTIONS)}, but got {distribution!r}"
    )


def uniform_of_std(std: float) -> Law:
    """The uniform law of mean 0 and this std: its bound is sqrt(3) std."""
    bound = _ROOT_OF_3 * std
    return laws.uniform(-bound, bound)
