"""Orthogonal weights, uniform over all orthogonal (unitary) matrices: Haar's measure.

The Q of a Gaussian matrix's QR decomposition, signs corrected, is Haar-distributed (Mezzadri 2007,
arXiv math-ph/0609050). Householder's algorithm makes the reflections one column after the other,
and what a reflection leaves below its row is Gaussian again, independent of all before. So the
reflections can be drawn directly, each from a Gaussian vector one shorter than the last, and only
their product needs computing (Stewart 1980, SIAM J. Numer. Anal. 17, 403-409): half of the work of
a QR, with no factorisation that could fail, for square, tall and wide alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastinit.backends import choose as backends
from fastinit.base import number
from fastinit.elements import shards as shard
from fastinit.elements import tensors
from fastinit.elements.part import Part
from fastinit.fills import operator as ops
from fastinit.fills.at_hand import native_address
from fastinit.fills.identity_and_sparse import centre
from fastinit.fills.seeded import full_shape, name_of, warn_if_lost, writes_whole
from fastinit.stream import laws
from fastinit.stream.keys import ANONYMOUS, stream_id
from fastinit.stream.rounding import rounded, wide

_LEAST = 1e-36
"""Stands for 0 in divisions: a normal float32, and too small to change what was drawn as another."""

_SMALL = 1 << 15
"""The most few x few x many of matrices that are made sooner on one thread than by LAPACK."""

_orthonormal_rows: Any = getattr(backends.native.module, "orthonormal_rows", None)


def orthogonal_(
    tensor: Tensor,
    gain: float = 1,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    part: Part | None = None,
) -> Tensor:
    """Fills with gain times a random matrix of orthonormal rows or columns, whichever are fewer.

    Uniform over all such matrices (Haar); exact to 1e-5 in float32. A function of the seed and the
    shape alone: dtype and strides change no more than rounding. Saxe et al. 2013, arXiv 1312.6120.

    Args:
        tensor: [rows, ...], at least 2-D; the trailing dimensions count as one. Any floating or
            complex dtype (half types are computed in float32) and strides. Of a DTensor each rank that
            holds elements makes the whole matrix and keeps its part; so of any other part.
        gain: a finite factor; may be negative.
        generator, seed, name, part: as for :func:`fastinit.init.normal_`.

    Raises:
        ValueError: fewer than 2 dimensions; both a seed and a generator.
        RuntimeError: a tensor whose elements overlap.
        NumberTypeError, NumberRangeError: a gain that is no number; NaN or infinite.
        NotImplementedError: an integer, bool, quantised or sparse tensor.
    """
    shape = full_shape(tensor, part)
    if len(shape) < 2:
        raise ValueError(
            f"Only tensors with 2 or more dimensions are supported, but got shape {tuple(shape)}"
        )
    gain, name = _checked(tensor, gain, part), name_of(name, part)
    if tensors.is_left_alone(tensor):
        return tensor
    if writes_whole(tensor, part):
        seed = ops.draw_seed(tensor, seed, generator)
        return shard.write_whole_(
            tensor, lambda t: orthogonal_(t, gain, seed=seed, name=name), part
        )
    rows = tensor.size(0)
    columns = math.prod(tensor.shape[1:])
    matrix = _matrix(rows, columns, tensor, gain, generator, seed, name)
    if tensor.dim() > 2:
        matrix = matrix.view(tensor.shape)
    tensor.detach().copy_(rounded(matrix, tensor.dtype))
    return tensor


def delta_orthogonal_(
    tensor: Tensor,
    gain: float = 1,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    name: str | None = None,
    part: Part | None = None,
) -> Tensor:
    """A convolution that maps each position alone, by gain times a random matrix: norms are kept.

    Zero but for the kernel's centre, which holds :func:`orthogonal_`'s matrix. Xiao et al. 2018,
    arXiv 1806.05393, section 3.

    Args:
        tensor: [out, in, 1 to 3 kernel sizes] with in <= out, any floating or complex dtype and
            strides; the centre of an even size k is k // 2.
        gain, generator, seed, name, part: as for :func:`orthogonal_`.

    Raises:
        ValueError: not 3-, 4- or 5-D; more inputs than outputs (no such matrix keeps norms); both a
            seed and a generator.
        RuntimeError, NotImplementedError: as :func:`orthogonal_`.
    """
    shape = full_shape(tensor, part)
    if len(shape) not in (3, 4, 5):
        raise ValueError(
            f"Only tensors with 3, 4, or 5 dimensions are supported, but got shape {tuple(shape)}"
        )
    if shape[1] > shape[0]:
        raise ValueError(
            "delta_orthogonal_ expects no more input than output channels, "
            f"but got shape {tuple(shape)}"
        )
    gain, name = _checked(tensor, gain, part), name_of(name, part)
    if tensors.is_left_alone(tensor):
        return tensor
    if writes_whole(tensor, part):
        seed = ops.draw_seed(tensor, seed, generator)
        return shard.write_whole_(
            tensor, lambda t: delta_orthogonal_(t, gain, seed=seed, name=name), part
        )
    matrix = _matrix(tensor.size(0), tensor.size(1), tensor, gain, generator, seed, name)
    if tensor.numel() > 0:
        with torch.no_grad():
            centre(tensor.zero_()).copy_(rounded(matrix, tensor.dtype))
    return tensor


def _checked(tensor: Tensor, gain: float, part: Part | None) -> float:
    """The gain, if all is well."""
    gain = number.multiplier("gain", gain, negative=True)
    ops.check_target(tensor, part=part)
    warn_if_lost(tensor, stacklevel=4)
    return gain


def _matrix(
    rows: int,
    columns: int,
    like: Tensor,
    gain: float,
    generator: torch.Generator | None,
    seed: int | None,
    name: str | None,
) -> Tensor:
    """gain times the [rows, columns] matrix, on ``like``'s device, in the dtype computed in."""
    gaussians = torch.empty(
        min(rows, columns),
        max(rows, columns),
        dtype=wide(like.dtype),
        device=like.device,
    )
    stream = ANONYMOUS if name is None else stream_id(name)
    ops.fill_(gaussians, laws.normal(), seed=seed, stream=stream, generator=generator)
    matrix = orthonormal_rows(gaussians, gain)
    return matrix.mT if rows > columns else matrix


def orthonormal_rows(gaussians: Tensor, gain: float = 1.0) -> Tensor:
    """gain times a Haar-distributed [few, many] matrix from Gaussians of its shape, few <= many.

    It is a product of reflections, transposed. Row k of ``gaussians``, from its k-th element on, is
    the vector x that reflection k maps to a multiple of the unit vector; what is left of the diagonal
    is not used. ``gaussians`` is overwritten. Reflections are LAPACK's: H = I - tau v v^H, v[0] = 1.

    A small real one is native on the CPU: torch's operators and LAPACK's threads would take longer to
    begin. The shape decides, not the tensor, so that a parameter's parts have the bits of the whole; but
    what is traced or shown to a mode is torch's, and has other roundings.
    """
    few, many = gaussians.shape
    if (
        (address := native_address(gaussians))
        and few * few * many <= _SMALL
        and not gaussians.is_complex()
    ):
        _orthonormal_rows(gaussians.dtype == torch.float64, address, few, many, gain, _LEAST)
        return gaussians
    x = gaussians.triu_()
    # The last row of a square matrix is one number, and may have been drawn as exactly 0.
    first = x.diagonal() + _LEAST
    norm = torch.linalg.vector_norm(x, dim=1).clamp_min_(_LEAST)
    # H maps x to -beta: beta is real, of x's norm, and of the sign that makes first + beta free of
    # cancellation.
    beta = torch.copysign(norm, first.real if first.is_complex() else first)
    columns = x.mT.div_(first + beta)
    q: Tensor = torch.linalg.householder_product(columns, first.div_(beta).add_(1))
    # R's diagonal would be -beta; Haar's measure wants it positive.
    signs = beta.sign_().neg_()
    return q.mul_(signs if gain == 1.0 else signs.mul_(gain)).mT
