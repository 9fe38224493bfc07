"""deferred(): what a constructor writes is recorded, and written afterwards."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from recording import LEVEL, Holder, holder, quiet, recorded, written
from same_bits import assert_values
from scipy import stats
from torch import Tensor, nn
from torch.nn.init import dirac_, eye_, orthogonal_, sparse_, trunc_normal_
from torch.nn.utils import parametrizations

from fastinit import Fill, Plan, deferred, init, materialize_, recorded_plan


def _from_own(
    draw: Callable[[Tensor, torch.Generator | None], object],
) -> Callable[[Tensor], object]:
    return lambda w: draw(w, torch.Generator().manual_seed(7))


def _after_seeding(
    draw: Callable[[Tensor, torch.Generator | None], object],
) -> Callable[[Tensor], object]:
    def write(w: Tensor) -> None:
        torch.manual_seed(7)
        draw(w, None)

    return write


@pytest.mark.parametrize("own", [_from_own, _after_seeding])
@pytest.mark.parametrize(
    "draw",
    [
        lambda w, g: nn.init.normal_(w, std=0.1, generator=g),
        lambda w, g: nn.init.trunc_normal_(w, std=0.1, generator=g),
        lambda w, g: nn.init.kaiming_uniform_(w, generator=g),
        lambda w, g: nn.init.orthogonal_(w, generator=g),
        lambda w, g: w.data.uniform_(-1, 1, generator=g),
        lambda w, g: w.data.copy_(torch.rand(w.shape, generator=g).mul(2).exp()),
        lambda w, g: w.data.copy_(torch.randn(w.shape[0], generator=g)[:, None]),
        lambda w, g: w.data.copy_(torch.randperm(w.numel(), generator=g).view_as(w)),
        lambda w, g: w.data.bernoulli_(0.3, generator=g),
    ],
)
def test_generators_of_the_constructor_are_kept_or_not(
    draw: Callable[[Tensor, torch.Generator | None], object],
    own: Callable[[Callable[..., object]], Callable[[Tensor], object]],
) -> None:
    """Kept, they give torch's numbers for any seed; else those that there are without them."""
    of_torch = Holder(own(draw), 6, 4)
    for seed in (0, 1):
        assert torch.equal(
            materialize_(recorded(lambda: Holder(own(draw), 6, 4), seed)).w, of_torch.w
        )
        with deferred(seed, keep_generators=False):
            ours = Holder(own(draw), 6, 4)
        without = recorded(lambda: Holder(lambda w: draw(w, None), 6, 4), seed)
        assert torch.equal(materialize_(ours).w, materialize_(without).w)
        assert not torch.equal(ours.w, of_torch.w)


# --- what is recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by_name", "function", "shape", "arguments"),
    [
        (trunc_normal_, "trunc_normal_", (64, 32), {"std": 0.02, "a": -0.04, "b": 0.04}),
        (orthogonal_, "orthogonal_", (64, 32), {"gain": 2.0}),
        (sparse_, "sparse_", (64, 32), {"sparsity": 0.3}),
        (eye_, "eye_", (16, 8), {}),
        (dirac_, "dirac_", (8, 4, 3), {"groups": 2}),
        *(
            (getattr(nn.init, n), n, (64, 32), {})
            for n in ("uniform_", "normal_", "zeros_", "ones_")
        ),
        *((getattr(nn.init, n), n, (64, 32), {}) for n in ("xavier_uniform_", "xavier_normal_")),
        *((getattr(nn.init, n), n, (64, 32), {}) for n in ("kaiming_uniform_", "kaiming_normal_")),
        (nn.init.constant_, "constant_", (3,), {"val": 2.5}),
    ],
)
def test_each_init_function_however_it_was_imported(
    by_name: Callable[..., Tensor], function: str, shape: tuple[int, ...], arguments: dict
) -> None:
    """Imported by name, through the module, or fastinit's own: the bits of fastinit's with a name."""
    wanted = torch.empty(shape)
    fixed = function in ("eye_", "dirac_", "zeros_", "ones_", "constant_")
    keys = {} if fixed else {"seed": 0, "name": "w"}
    getattr(init, function)(wanted, **arguments, **keys)
    through_module = lambda w: getattr(nn.init, function)(w, **arguments)  # noqa: E731
    ours = lambda w: getattr(init, function)(w, **arguments)  # noqa: E731
    for write in (lambda w: by_name(w, **arguments), through_module, ours):
        assert_values(holder(write, *shape), wanted, function)


def test_functions_are_as_before_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), deferred():
        nn.Linear(3, 1 // len(nn.Linear(3, 3).weight[:0]))
    weight = orthogonal_(torch.empty(4, 4))
    assert torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-5)
    assert not nn.Linear(3, 3).weight.is_meta
    assert not Holder(trunc_normal_, 5).w.is_meta


def test_methods_and_views() -> None:
    std = torch.empty(24, 8)
    init.normal_(std, seed=0, name="w")

    def fused(w: Tensor) -> None:
        w[:8].normal_(0, 0.1)
        w[8:16].normal_(0, 0.1)
        w[16:].normal_(0, 0.2)
        w[3].zero_()
        w.mul_(2.0)

    values = holder(quiet(fused), 24, 8)
    wanted = std * torch.tensor([0.2] * 16 + [0.4] * 8)[:, None]
    wanted[3] = 0
    torch.testing.assert_close(values, wanted, rtol=1e-6, atol=0)
    plan = recorded_plan(recorded(lambda: Holder(quiet(fused), 24, 8)))
    assert isinstance(plan["w"], Fill)
    assert Plan.from_json(plan.to_json()) == plan


def test_shift_and_scale_fold() -> None:
    def write(w: Tensor) -> None:
        w.uniform_(0, 1).sub_(0.5).mul_(4).add_(1).div_(2)

    plan = recorded_plan(recorded(lambda: Holder(quiet(write), 9)))
    assert plan["w"].law == Fill.uniform(-0.5, 1.5).law
    negative = recorded_plan(recorded(lambda: Holder(quiet(lambda w: w.normal_(1, 2).neg_()), 9)))
    assert negative["w"].law == Fill.normal(-1.0, 2.0).law


def test_timms_own_truncated_normal_is_the_law_that_it_is() -> None:
    def write(w: Tensor) -> None:
        low, high = ((1 + math.erf(x / math.sqrt(2.0))) / 2 for x in (-2.0, 2.0))
        w.uniform_(2 * low - 1, 2 * high - 1).erfinv_()
        w.mul_(0.02 * math.sqrt(2.0)).add_(0.0).clamp_(min=-0.04, max=0.04)

    values, wanted = holder(quiet(write), 32, 32), torch.empty(32, 32)
    init.trunc_normal_(wanted, std=0.02, a=-0.04, b=0.04, seed=0, name="w")
    torch.testing.assert_close(values, wanted, rtol=1e-6, atol=0)


def test_the_last_full_write_counts() -> None:
    def write(w: Tensor) -> None:
        w.uniform_().exp_()
        orthogonal_(w)
        w[2].zero_()
        w.normal_(0, 0.5)

    wanted = init.normal_(torch.empty(6, 6), 0, 0.5, seed=0, name="w")
    assert torch.equal(holder(quiet(write), 6, 6), wanted)


def test_what_is_no_fill_is_replayed_on_the_parameters_own_numbers() -> None:
    def write(w: Tensor) -> None:
        w.uniform_(0.5, 1.0).log_().mul_(torch.arange(5.0))

    uniform = init.uniform_(torch.empty(4, 5), 0.5, 1.0, seed=0, name="w")
    wanted = uniform.log_().mul_(torch.arange(5.0))
    torch.testing.assert_close(holder(quiet(write), 4, 5), wanted)  # the logarithm is torch's


def test_other_random_operations_are_drawn_from_the_parameters_own_stream() -> None:
    write = quiet(lambda w: w.bernoulli_(0.5))
    values = holder(write, 64, 64)
    assert torch.equal(values, holder(write, 64, 64))
    assert stats.binomtest(int(values.sum()), values.numel(), 0.5).pvalue > LEVEL


def test_parameters_made_of_values_that_exist() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_log = nn.Parameter(torch.log(torch.arange(1.0, 9.0)))
            self.ones = nn.Parameter(torch.ones(3, 3))
            self.noise = nn.Parameter(torch.randn(64, 64) * 0.02)
            self.old = nn.Parameter(torch.Tensor(8, 8).uniform_(-0.5, 0.5))
            self.exp = nn.Parameter(torch.rand(7).exp())

    model = written(Given)
    torch.testing.assert_close(model.a_log.detach(), torch.log(torch.arange(1.0, 9.0)))
    assert torch.equal(model.ones, torch.ones(3, 3))
    assert torch.equal(
        model.noise, init.normal_(torch.empty(64, 64), 0, 0.02, seed=0, name="noise")
    )
    assert torch.equal(model.old, init.uniform_(torch.empty(8, 8), -0.5, 0.5, seed=0, name="old"))
    exp = init.uniform_(torch.empty(7), seed=0, name="exp").exp()
    torch.testing.assert_close(model.exp.detach(), exp)


@pytest.mark.parametrize("referred", [False, True])
def test_parameters_that_are_views_of_values(referred: bool) -> None:
    """Also where something else refers to them."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            values = torch.arange(24.0).view(4, 6)
            views = {
                "row": values[2],
                "rows": values[1:3],
                "turned": values.t(),
                "columns": values[:, 1:3],
                "thirds": values.flatten()[2::3],
                "one": values[3, 5],
            }
            made = {name: nn.Parameter(view) for name, view in views.items()}
            self.references = [weakref.ref(p) for p in made.values()] if referred else []
            for name, parameter in made.items():
                self.register_parameter(name, parameter)

    model, eager = recorded(Views), Views()
    assert all(parameter.is_meta for parameter in model.parameters())
    planned = recorded_plan(model).apply_(Views())
    materialize_(model)
    for (name, wanted), ours, again in zip(
        eager.named_parameters(), model.parameters(), planned.parameters(), strict=True
    ):
        assert torch.equal(ours, wanted), name
        assert torch.equal(again, wanted), name


def test_values_into_which_numbers_are_drawn() -> None:
    """What they were before, once, and the whole memory of what was written in part."""

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            values = torch.arange(4.0)[:, None] * 100
            self.added = nn.Parameter(values.expand(4, 6).clone().add_(torch.rand(4, 6)))
            part = values.expand(4, 6).clone()
            part[1:3].uniform_()
            part[2:, 1:4].add_(torch.rand(2, 3))
            self.part = nn.Parameter(part.add_(1000))
            self.rows = nn.Parameter(part[1:])

    model = written(Drawn)
    drawn = init.uniform_(torch.empty(4, 6), seed=0, name="part")[1] + 1000
    torch.testing.assert_close(model.part[1].detach(), drawn)
    assert torch.equal(model.rows, model.part[1:])
    hundreds = (model.added / 100).floor()
    assert torch.equal(hundreds, torch.arange(4.0)[:, None].expand(4, 6))
    assert len(model.added.detach().remainder(100).unique()) > 12  # drawn, not given
    kept = (model.part.detach()[[0, 3], ::5], model.part.detach()[3, 1:4])
    assert kept[0].tolist() == [[1000, 1000], [1300, 1300]]
    assert bool(((kept[1] > 1300) & (kept[1] < 1301)).all())


def test_copies_are_equal_to_what_they_were_copied_from() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.teacher = copy.deepcopy(self.a)
            self.loaded = nn.Linear(8, 8)
            self.loaded.load_state_dict(self.a.state_dict())
            self.register_buffer("ema", self.a.weight.detach().clone())
            self.register_buffer("norm", self.a.weight.detach().norm())
            nn.init.normal_(self.a.bias)  # after it was copied

    model = written(Student)
    for same in (model.teacher.weight, model.loaded.weight, model.ema):
        assert torch.equal(model.a.weight, same)
    torch.testing.assert_close(model.norm, model.a.weight.detach().norm())
    assert not torch.equal(model.a.bias, model.teacher.bias)
    assert torch.equal(model.teacher.bias, model.loaded.bias)
    assert model.teacher.bias.abs().max() <= 1 / math.sqrt(8)
    independent = written(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    assert not torch.equal(independent[0].weight, independent[1].weight)


def test_numbers_read_before_a_second_draw_are_others() -> None:
    def write(w: Tensor) -> None:
        first = w.normal_().clone()
        w.normal_().add_(first)

    values = holder(quiet(write), 64, 64)
    assert stats.kstest(values.flatten() / math.sqrt(2), "norm").pvalue > LEVEL


def test_data_assigned() -> None:
    class Assigned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.fc.bias.data = torch.full((4,), 0.5)
            self.fc.weight.data = self.fc.weight.data.t().contiguous() * 2

    model = written(Assigned)
    assert torch.equal(model.fc.bias, torch.full((4,), 0.5))
    drawn = init.uniform_(torch.empty(4, 4), -0.5, 0.5, seed=0, name="fc.weight")
    torch.testing.assert_close(model.fc.weight.detach(), drawn.t() * 2, rtol=1e-6, atol=1e-7)


def test_ties_lists_dtypes_flags_and_subclasses() -> None:
    class Marked(nn.Parameter):
        pass

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
            self.head.weight = self.embed.weight
            self.list = nn.ParameterList(
                [nn.Parameter(torch.randn(3)), nn.Parameter(torch.zeros(2))]
            )
            self.dict = nn.ParameterDict({"x": torch.full((2,), 3.0)})
            self.low = nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False)
            self.late = nn.Linear(8, 8).to(torch.float16)
            self.marked = Marked(torch.ones(2))
            self.embed.weight.note = "kept"

    model = written(Mixed)
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.note == "kept"
    assert (model.list[0].numel(), model.dict["x"].tolist()) == (3, [3.0, 3.0])
    assert (model.low.weight.dtype, model.low.weight.requires_grad) == (torch.bfloat16, False)
    assert model.late.weight.dtype == torch.float16
    assert model.late.weight.abs().sum() > 0
    assert type(model.marked) is Marked
    assert recorded_plan(recorded(Mixed)).aliases == {"head.weight": "embed.weight"}


def test_a_padding_row() -> None:
    weight = written(lambda: nn.Embedding(10, 4, padding_idx=3)).weight.detach()
    assert not weight[3].any()
    assert weight[2].all()


def test_reset_parameters_again_is_the_same() -> None:
    def twice() -> nn.Module:
        module = nn.Linear(8, 8)
        module.reset_parameters()
        return module

    assert torch.equal(written(twice).weight, written(lambda: nn.Linear(8, 8)).weight)
    model = written(twice)
    model.reset_parameters()
    assert model.weight.abs().sum() > 0


def test_lazy_modules_stay_lazy() -> None:
    model = written(lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)))
    assert model(torch.ones(2, 4)).shape == (2, 3)
    inside = written(lambda: _ran(nn.Sequential(nn.LazyLinear(3))))
    assert inside[0].weight.abs().sum() > 0


def _ran(model: nn.Module) -> nn.Module:
    model(torch.ones(2, 4))
    return model


def test_weight_norm_old_and_new() -> None:
    new = written(lambda: parametrizations.weight_norm(nn.Linear(8, 4)))
    wanted = init.uniform_(
        *(torch.empty(4, 8), -1 / math.sqrt(8), 1 / math.sqrt(8)),
        seed=0,
        name="parametrizations.weight.original1",
    )
    torch.testing.assert_close(new.weight.detach(), wanted, rtol=1e-5, atol=1e-7)
    with pytest.warns(FutureWarning):
        old = written(lambda: nn.utils.weight_norm(nn.Linear(8, 4)))
    assert not old.weight.is_meta
    assert old(torch.ones(1, 8)).isfinite().all()


def test_devices_asked_of_a_parameter_are_real() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("steps", torch.arange(4, device=self.fc.weight.device))
            self.register_buffer("like", torch.zeros_like(self.fc.weight))
            self.register_buffer("there", torch.ones(3).to(self.fc.weight))

    model = recorded(Asks)
    assert model.steps.tolist() == [0, 1, 2, 3]
    assert model.like.sum() == 0
    assert model.there.sum() == 3
