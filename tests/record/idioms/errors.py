"""What can't be recorded, and callers that catch it: an error in the end, and never a broken model."""

from __future__ import annotations

import contextlib
import io
import pickle
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from . import Kind

parametrised, read, caught = Kind("parametrised"), Kind("values read"), Kind("caught")
no_meta, unwritten = Kind("no meta kernel"), Kind("unwritten")


def linear(m: Any) -> nn.Parameter:
    m.layer = nn.Linear(8, 8)
    return m.layer.weight


# --- parametrisations ---------------------------------------------------------------------------------


@parametrised.as_eager
def orthogonal(m: Any) -> None:
    m.layer = parametrizations.orthogonal(nn.Linear(8, 16))


@parametrised.refused(word="reads the values")
def orthogonal_by_householder(m: Any) -> None:
    m.layer = parametrizations.orthogonal(
        nn.Linear(8, 8), orthogonal_map="householder", use_trivialization=False
    )


@parametrised.refused(word="reads the values")
def orthogonal_by_cayley(m: Any) -> None:
    m.layer = parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="cayley")


@parametrised.as_eager
def weight_norm(m: Any) -> None:
    m.layer = parametrizations.weight_norm(nn.Linear(8, 16), dim=0)


@parametrised.as_eager
def weight_norm_of_a_convolution_drawn_again(m: Any) -> None:
    m.conv = parametrizations.weight_norm(nn.Conv1d(4, 8, 3))
    nn.init.normal_(m.conv.parametrizations.weight.original1, std=0.5)


@parametrised.as_eager
def old_weight_norm(m: Any) -> None:
    m.layer = nn.utils.weight_norm(nn.Linear(8, 16))


@parametrised.as_eager
def old_weight_norm_put_on_and_off(m: Any) -> None:
    m.layer = nn.utils.remove_weight_norm(nn.utils.weight_norm(nn.Linear(8, 16)))


@parametrised.as_eager
def by_its_own_right_inverse(m: Any) -> None:
    class Exponential(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

        def right_inverse(self, y: torch.Tensor) -> torch.Tensor:
            return y.abs().log()

    linear(m)
    nn.utils.parametrize.register_parametrization(m.layer, "weight", Exponential())


@parametrised.refused(word="reads the values")
def assigned(m: Any) -> None:
    m.layer = parametrizations.orthogonal(nn.Linear(8, 8))
    m.layer.weight = torch.eye(8)


# --- values that are read -----------------------------------------------------------------------------


@read.refused()
def the_largest(m: Any) -> None:
    m.bound = float(linear(m).abs().max())


@read.refused()
def in_a_condition(m: Any) -> None:
    if (linear(m) > 0).any():
        m.layer.bias.data.zero_()


@read.refused()
def until_it_is_small(m: Any) -> None:
    w = linear(m)
    while w.abs().max() > 0.3:
        nn.init.normal_(w, std=0.1)


@read.refused()
def as_text(m: Any) -> None:
    m.said = f"{linear(m).mean():.3f}"


@read.refused()
def as_a_list(m: Any) -> None:
    m.rows = linear(m).tolist()


@read.refused()
def as_an_array(m: Any) -> None:
    linear(m).detach().numpy()[:] = 1.0


@read.refused()
def by_its_address(m: Any) -> None:
    m.address = linear(m).data_ptr()


@read.refused()
def element_by_element(m: Any) -> None:
    linear(m).data.apply_(lambda x: round(x, 2))


@read.refused()
def pickled(m: Any) -> None:
    m.bytes = len(pickle.dumps(linear(m)))


@read.refused()
def saved(m: Any) -> None:
    linear(m)
    torch.save(m.state_dict(), io.BytesIO())


@read.refused()
def by_another_library(m: Any) -> None:
    torch.utils.dlpack.from_dlpack(linear(m).data.__dlpack__())


@read.refused()
def a_backward_pass(m: Any) -> None:
    linear(m).sum().backward()


@read.refused()
def made_sparse(m: Any) -> None:
    m.w = nn.Parameter(linear(m).detach().to_sparse())


@read.refused()
def which_are_positive(m: Any) -> None:
    m.register_buffer("found", (linear(m).detach() > 0).nonzero())


@read.refused()
def those_that_are_positive(m: Any) -> None:
    w = linear(m).detach()
    m.positive = nn.Parameter(w[w > 0])


@read.refused()
def how_many_differ(m: Any) -> None:
    m.register_buffer("values", torch.unique(linear(m).detach().round(decimals=1)))


# --- and caught ---------------------------------------------------------------------------------------


@caught.refused()
def by_except_exception(m: Any) -> None:
    try:
        m.bound = float(linear(m).abs().max())
    except Exception:
        m.bound = 1.0


@caught.refused()
def by_except_runtime_error(m: Any) -> None:
    w = linear(m)
    try:
        nn.init.constant_(w, w.mean().item())
    except (RuntimeError, NotImplementedError):
        nn.init.zeros_(w)


@caught.refused()
def by_suppress(m: Any) -> None:
    w = linear(m)
    with contextlib.suppress(RuntimeError, ValueError):
        m.register_buffer("found", (w.detach() > 0).nonzero())


@caught.refused()
def by_a_bare_except(m: Any) -> None:
    w = linear(m)
    try:
        m.rank = int(torch.linalg.matrix_rank(w.detach()))
    except:  # noqa: E722
        m.rank = 0


@caught.as_eager
def errors_that_eager_has_too(m: Any) -> None:
    w = linear(m)
    m.tried = []
    for attempt in (lambda: w.view(3, 5), lambda: w @ torch.ones(3), lambda: w[9]):
        try:
            attempt()
        except (RuntimeError, IndexError) as error:
            m.tried.append(type(error).__name__)


# --- operations that meta tensors have no kernel for --------------------------------------------------


@no_meta.as_eager
def a_histogram(m: Any) -> None:
    m.register_buffer("histogram", torch.histc(linear(m).detach(), bins=10, min=-1, max=1))


@no_meta.as_eager
def an_old_factorisation(m: Any) -> None:
    a, tau = torch.geqrf(linear(m).data)
    m.q = nn.Parameter(torch.linalg.householder_product(a, tau))
    m.r = nn.Parameter(torch.ormqr(a, tau, torch.eye(8)))


@no_meta.as_eager
def eigenvalues(m: Any) -> None:
    m.values = nn.Parameter(torch.linalg.eigvals(linear(m).data).abs().sort().values)


@no_meta.as_eager
def a_quantile_and_a_median(m: Any) -> None:
    w = linear(m).detach()
    m.register_buffer("quantile", torch.quantile(w, 0.9))
    m.register_buffer("median", torch.median(w))
    m.register_buffer("mode", torch.mode(w.round(), dim=1).values)


@no_meta.as_eager
def counts_of_random_integers(m: Any) -> None:
    index = torch.randint(0, 8, (1000,))
    m.register_buffer("counts", torch.bincount(index, minlength=8))
    m.register_buffer("index", index)


@no_meta.as_eager
def distances(m: Any) -> None:
    w = linear(m).detach()
    m.register_buffer("distances", torch.cdist(w, w))
    m.register_buffer("condensed", torch.pdist(w))


# --- memory that nobody wrote -------------------------------------------------------------------------


@unwritten.refused(ValueError, "unwritten")
def a_parameter(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))


@unwritten.refused(ValueError, "unwritten")
def a_parameter_that_is_multiplied(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))
    m.w.data.mul_(2.0)


@unwritten.refused(ValueError, "unwritten")
def a_part(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))
    nn.init.normal_(m.w[:5])


@unwritten.refused(ValueError, "unwritten")
def a_part_that_is_multiplied(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))
    with torch.no_grad():
        m.w[:5].normal_()
        m.w[5:].mul_(2.0)


@unwritten.refused(ValueError, "unwritten")
def what_a_copy_is_taken_from(m: Any) -> None:
    m.a, m.b = nn.Parameter(torch.empty(8, 8)), nn.Parameter(torch.empty(8, 8))
    m.b.data.copy_(m.a.data)
    nn.init.zeros_(m.a)


@unwritten.refused(ValueError, "unwritten")
def what_is_computed_from_it(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8).abs() + 1)


@unwritten.refused(ValueError, "unwritten")
def one_column(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))
    for i in range(7):
        nn.init.constant_(m.w[:, i], float(i))


@unwritten.as_eager
def a_buffer(m: Any) -> None:
    linear(m)
    m.register_buffer("scratch", torch.empty(8))
    m.cache = torch.empty(2, 8)


@unwritten.as_eager
def nothing_to_write(m: Any) -> None:
    m.none, m.flat = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0, 8))


@unwritten.as_eager
def written_part_by_part(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))
    for i in reversed(range(8)):
        nn.init.uniform_(m.w[:, i])


@unwritten.as_eager
def unwritten_and_given_up(m: Any) -> None:
    m.w = nn.Parameter(torch.empty(8, 8))
    m.w.data.mul_(2.0)
    m.w = nn.Parameter(torch.ones(8, 8))
    m.v = nn.Parameter(torch.empty(3))
    del m.v


@unwritten.as_eager
def lazy_ones(m: Any) -> None:
    m.lazy, m.layer = nn.LazyLinear(4), nn.Linear(4, 4)
