"""torch.nn.init, at memory speed and with the same bits everywhere.

Every function of ``torch.nn.init`` under the same name, with the same arguments, defaults, result
(the tensor itself), warnings and exception types. Written under ``no_grad``; ``requires_grad``
stays; meta and empty tensors are left alone and no number is drawn for them. Beyond torch are
:func:`variance_scaling_`, :func:`lecun_normal_`, :func:`lecun_uniform_`, :func:`delta_orthogonal_`,
bounds in standard deviations (``sigma=True``) and, keyword-only:

``seed``
    in [0, 2^64). By default one 64-bit draw from ``generator``, by default torch's CPU generator:
    so ``torch.manual_seed(0)`` makes a call reproducible, and the same on every device.
``name``
    of the parameter: values are then of the stream of their own that belongs to the name. A seed, a
    name and a shape always give the same values; another dtype the same ones, rounded, but where
    that leaves the law's interval: then the nearest value inside it.
``fan``
    (fan_in, fan_out), where the shape does not tell them: grouped or fused weights.
``part``
    :class:`fastinit.Part`: which elements of the full parameter the tensor holds. It gets the values
    that these have in the whole, and fans are those of the full shape. (A DTensor says it itself.)
``scale``
    of a float8 tensor: value / scale is stored, one float32 division, rounded once, and then rounded and
    saturated as without a scale. (Of :func:`variance_scaling_` it is JAX's argument, another thing.)
``exact``
    of a float64 tensor: values are drawn in float64, of 53 random bits. Otherwise they are the float32
    values, widened: then another dtype gives the same ones, rounded, but float64 has no more than 2^32
    of them.

A number is any of Python's or NumPy's, or a tensor without dimensions, but no bool. What is none raises
NumberTypeError (a TypeError and ValueError), and one out of range NumberRangeError (a ValueError and
RuntimeError), here and in all of fastinit.

What torch does that these functions do not repeat:

================= ====================================== ========================================
function          torch                                  fastinit
================= ====================================== ========================================
all random ones   values depend on strides, dtype path,  the same bits everywhere
                  device and GPU model
normal_           one thread on the CPU                  all of torch's threads
normal_           takes a NaN mean and an infinite std   RuntimeError
trunc_normal_     redraws until all values fit: 15 to 19 inverse CDF, one pass, every bound
                  times slower than normal_, loops for
                  ever under FSDP2 with CPU offload,
                  fails under FakeTensor, outliers at
                  far bounds; takes std -1 and NaN
uniform_          complex: twice the variance            the variance asked for
orthogonal_       fails in float16, bfloat16, complex    any dtype, any strides
                  and on channels_last weights
sparse_           places of zeros ignore the generator;  from the seed; ValueError
                  takes sparsity outside [0, 1]
xavier_*          shape (0, 0) divides by zero           no-op
dirac_            groups=0 divides by zero, negative     ValueError
                  groups pass
random, eye_      write views whose elements overlap     RuntimeError
                  (unfold), sparse CSR
all               silent when the tensor is a temporary  LostWriteWarning
                  of weight_norm or parametrize
================= ====================================== ========================================

Read-only NumPy memory cannot be told from other memory: ``torch.from_numpy`` warns, and the tensor
keeps no trace of it. Writing it is undefined, here as in torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastinit.elements.part import Part
from fastinit.fills.blocks import Blocks, Target
from fastinit.fills.by_fan import (
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    variance_scaling_,
    xavier_normal_,
    xavier_uniform_,
)
from fastinit.fills.fans import (
    _calculate_correct_fan,
    _calculate_fan_in_and_fan_out,
    calculate_gain,
)
from fastinit.fills.identity_and_sparse import dirac_, eye_, sparse_
from fastinit.fills.operator import fill_
from fastinit.fills.orthogonal import delta_orthogonal_, orthogonal_
from fastinit.fills.seeded import LostWriteWarning, check_reaches, draw_, write_
from fastinit.stream import laws

__all__ = [
    "LostWriteWarning",
    "_calculate_correct_fan",
    "_calculate_fan_in_and_fan_out",
    "calculate_gain",
    "constant",
    "constant_",
    "delta_orthogonal_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "normal",
    "normal_",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "sparse",
    "sparse_",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "variance_scaling_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros_",
]


def uniform_(
    tensor: Target,
    a: float = 0.0,
    b: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the uniform law on [a, b).

    Args:
        tensor: as for :func:`normal_`. A complex value has the variance of this law: each part is
            uniform on an interval narrower by sqrt(2), about the same middle.
        a, b: finite, a <= b; b itself is never drawn unless a == b, in no dtype. Of float16 and
            bfloat16, values that would round to b are the dtype's largest below it (of [0, 1) 0.024 %
            and 0.20 % of all), and where the dtype has no value in [a, b), all are the nearest to a.
        generator, seed, name, part, scale, exact: as for :func:`normal_`.

    Raises:
        NumberRangeError: bounds reversed, NaN, infinite or beyond the tensor's dtype; and as
            :func:`normal_`.
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(
            uniform_,
            (tensor,),
            tensor,
            a=a,
            b=b,
            generator=generator,
            seed=seed,
            name=name,
            part=part,
            scale=scale,
            exact=exact,
        )
    return draw_(tensor, laws.uniform(a, b), generator, seed, name, part, scale, exact)


def normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the normal law.

    Args:
        tensor: any shape and strides; float8, float16, bfloat16, float32, float64 or complex, which
            has the variance asked for: each part has half.
        mean, std: finite, std >= 0.
        generator: the seed is drawn from it; by default from torch's CPU generator.
        seed: in [0, 2^64), instead of a generator.
        name: the parameter's, for a stream of its own; by default that of the part, or the anonymous
            stream.
        part: which elements of the full parameter these are; by default all. It needs a seed, as other
            ranks have to draw the same.
        scale: of a float8 tensor, what values are divided by before they are rounded and stored: any
            number in float32's normal range, rounded to float32; by default 1. The law is that of the
            values, which are what is stored times the scale.
        exact: of a float64 or complex128 tensor, values are drawn in float64: of 53 random bits, up to
            8.57 standard deviations. They are others than those of float32, and are made on the CPU by
            plain torch, a million or two a second, whatever the device. By default float64 gets the
            float32 values, widened, up to 6.76 standard deviations.

    Raises:
        TypeError: ``tensor`` is none, or a name or part has the wrong type.
        NumberTypeError: a number or seed that is none (``fastinit.base.number``).
        NumberRangeError: std negative, NaN or infinite; mean NaN or infinite; a seed out of range;
            a scale that is 0, negative, NaN or infinite.
        ValueError: both a seed and a generator; an UninitializedParameter; a part without a seed, of
            another name than ``name``, or of another shape than the tensor's; a scale, and the tensor is
            none of 8 bits; exact, and it is neither float64 nor complex128.
        NotImplementedError: an integer, bool, quantised or sparse tensor.
        RuntimeError: elements of the tensor that overlap; an inference tensor outside inference mode.

    >>> normal_(torch.empty(2), seed=0).equal(normal_(torch.empty(2), seed=0))
    True
    >>> rows = Part((8, 4)).chunk(0, ranks=2, rank=1)
    >>> whole = normal_(torch.empty(8, 4), seed=0, name="w")
    >>> normal_(torch.empty(4, 4), seed=0, name="w", part=rows).equal(whole[4:])
    True
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(
            normal_,
            (tensor,),
            tensor,
            mean=mean,
            std=std,
            generator=generator,
            seed=seed,
            name=name,
            part=part,
            scale=scale,
            exact=exact,
        )
    return draw_(tensor, laws.normal(mean, std), generator, seed, name, part, scale, exact)


def trunc_normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
    *,
    sigma: bool = False,
    seed: int | None = None,
    name: str | None = None,
    part: Part | None = None,
    scale: float | None = None,
    exact: bool = False,
) -> Target:
    """Fills with the normal law conditioned on [a, b].

    The values' own std is below ``std``; :func:`variance_scaling_` makes up for that.

    Args:
        tensor, generator, seed, name, part, scale, exact: as for :func:`normal_`.
        mean, std: of the normal law that is cut.
        a, b: the bounds, which may be infinite: values, whatever the std, as in torch; or, with
            ``sigma``, multiples of std, counted from the mean. No value is outside, in no dtype: one
            that would round out of [a, b] is the dtype's nearest inside.
        sigma: how a and b are meant.

    Raises:
        NumberRangeError: bounds reversed, NaN, or wholly more than 8.9 std from the mean; and as
            :func:`normal_`.

    Warns:
        UserWarning: the mean is more than 2 std outside [a, b]. All values are then from the tail.
    """
    make = laws.truncated_normal_by_sigma if sigma else laws.truncated_normal
    law = make(mean, std, a, b)
    mean, std, a, b = law.arguments
    if (mean < a - 2 * std or mean > b + 2 * std) and not tensor.is_meta:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The values are all from the tail of the distribution.",
            stacklevel=2,
        )
    return draw_(tensor, law, generator, seed, name, part, scale, exact)


def constant_(tensor: Target, val: float) -> Target:
    """Fills with ``val``; any dtype that torch's own fill_ can write, which this is.

    Raises:
        NotImplementedError: a tensor that is not where its parameter is
            (``fastinit.elements.shards.check_held``).
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(constant_, (tensor,), tensor, val=val)
    if isinstance(tensor, Blocks):
        return fill_(tensor, laws.constant(val))
    return write_(tensor, lambda t: t.fill_(val), check_reaches)


def ones_(tensor: Target) -> Target:
    """Fills with 1; otherwise as :func:`constant_`."""
    if isinstance(tensor, Blocks):
        return fill_(tensor, laws.constant(1.0))
    return write_(tensor, lambda t: t.fill_(1.0), check_reaches)


def zeros_(tensor: Target) -> Target:
    """Fills with 0; otherwise as :func:`constant_`."""
    if isinstance(tensor, Blocks):
        return fill_(tensor, laws.constant(0.0))
    return write_(tensor, Tensor.zero_, check_reaches)


# --- deprecated names ----------------------------------------------------------------------------

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _deprecated(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function under torch's old name, with torch's warning."""
    new = function.__name__
    old = new[:-1]

    def alias(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        warnings.warn(
            f"`nn.init.{old}` is now deprecated in favor of `nn.init.{new}`.",
            FutureWarning,
            stacklevel=2,
        )
        return function(*args, **kwargs)

    alias.__name__ = alias.__qualname__ = old
    alias.__doc__ = f"The deprecated name of :func:`{new}`."
    return alias


uniform = _deprecated(uniform_)
normal = _deprecated(normal_)
constant = _deprecated(constant_)
eye = _deprecated(eye_)
dirac = _deprecated(dirac_)
xavier_uniform = _deprecated(xavier_uniform_)
xavier_normal = _deprecated(xavier_normal_)
kaiming_uniform = _deprecated(kaiming_uniform_)
kaiming_normal = _deprecated(kaiming_normal_)
orthogonal = _deprecated(orthogonal_)
sparse = _deprecated(sparse_)
