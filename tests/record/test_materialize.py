"""materialize_ and recorded_plan: parts of a model, who else holds its tensors, what was changed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import deferred, init, materialize_, recorded_plan
from fastinit.base import frames


class Net(nn.Module):
    """A parameter in a part, a random buffer, and a buffer made of the parameter."""

    noise: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(8, 8))
        self.register_buffer("noise", torch.randn(8))
        self.register_buffer("average", self.part[0].weight.detach().clone())


def recorded(build: Callable[[], nn.Module] = Net, seed: int = 0) -> nn.Module:
    with deferred(seed):
        return build()


def test_a_part_with_its_prefix_has_the_numbers_of_the_whole() -> None:
    whole, parts = materialize_(recorded()), recorded()
    plan = recorded_plan(parts.part, prefix="part.")
    assert list(plan) == ["part.0.weight", "part.0.bias"]
    materialize_(parts.part, prefix="part.")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parts.get_parameter(name), parameter), name
    assert torch.equal(parts.average, whole.average)
    with pytest.raises(ValueError, match=r"prefix must be .* 'part\.', but got 'part'"):
        materialize_(recorded().part, prefix="part")
    alone = materialize_(recorded().part)
    assert not torch.equal(alone[0].weight, whole.part[0].weight)


def test_a_random_buffer_is_drawn_with_its_name_unless_it_was_changed() -> None:
    model = recorded()
    materialize_(model)
    assert torch.equal(model.noise, init.normal_(torch.empty(8), seed=0, name="noise"))
    model = recorded()
    model.noise.fill_(3.0)  # loaded, say
    assert materialize_(model).noise.tolist() == [3.0] * 8


CHANGES = {
    "in place": torch.no_grad()(lambda m: m.part[0].weight.fill_(3.0)),
    "by init": lambda m: nn.init.constant_(m.part[0].weight, 3.0),
    "in part": torch.no_grad()(lambda m: m.part[0].weight[2:4].zero_()),
    "by arithmetic": torch.no_grad()(lambda m: m.part[0].weight.mul_(2.0)),
    "by reset_parameters": lambda m: m.part[0].reset_parameters(),
    "through what is detached": lambda m: m.part[0].weight.detach().zero_(),
    "a buffer": lambda m: m.average.zero_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("written", [recorded_plan, materialize_])
def test_what_was_written_after_the_block_is_refused(
    change: Callable[[Net], object], written: Callable[[nn.Module], object]
) -> None:
    model = recorded()
    change(model)
    with pytest.raises(
        ValueError, match=r"written after the block .*: tensors? (part\.0\.weight|average)"
    ):
        written(model)
    assert model.part[0].weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_was_made_after_the_block_is_refused_with_what_to_do(dtype: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=r"not recorded .* converted after its block .* takes device="
    ):
        materialize_(recorded().to(dtype))


@pytest.mark.parametrize(
    "leave",
    [
        lambda m: m.requires_grad_(False),
        lambda m: m.zero_grad(),
        lambda m: torch.optim.Adam(m.parameters()),
        lambda m: nn.Sequential(m),
        lambda m: m.part[0].weight.detach().norm(),
        lambda m: setattr(m, "more", nn.Parameter(m.part[0].weight.T)),
        lambda m: m.load_state_dict({"average": torch.ones(8, 8)}, strict=False, assign=True),
        lambda _: recorded(),  # another model's block
        lambda m: fastinit.lsuv_(m.part, torch.ones(4, 8).add(torch.arange(8.0))),
    ],
)
def test_what_does_not_write_is_free_after_the_block(leave: Callable[[Net], object]) -> None:
    model = recorded()
    leave(model)
    assert not materialize_(model).part[0].weight.is_meta


def test_a_model_that_another_block_writes_is_recorded_there() -> None:
    model = recorded()
    with deferred():
        nn.init.constant_(model.part[0].weight, 3.0)
    assert bool((materialize_(model).part[0].weight == 3.0).all())


def test_a_plan_writes_the_buffers_that_were_not_yet() -> None:
    model, wanted = recorded(), materialize_(recorded())
    recorded_plan(model).apply_(model, device="cpu")
    assert torch.equal(model.noise, wanted.noise)
    assert torch.equal(model.average, wanted.average)
    other = recorded()
    plan = recorded_plan(other)
    other.noise.fill_(3.0)
    with pytest.raises(ValueError, match="buffer noise: other values than the constructor gave"):
        plan.apply_(other, device="cpu")


def test_whoever_holds_a_tensor_of_a_model_holds_the_one_with_values() -> None:
    """Also tensors that were made after the block, and an optimizer."""
    with deferred():
        model = Net()
        local = model.part[0].weight.detach() * 2
    weight = model.part[0].weight
    optimizer, flat = torch.optim.SGD(model.parameters(), lr=1.0), weight.detach().view(-1)
    materialize_(model)
    assert optimizer.param_groups[0]["params"][0] is model.part[0].weight is weight
    assert flat.data_ptr() == weight.data_ptr()
    assert torch.equal(local, weight * 2)


def test_two_models_of_one_block_are_written_one_by_one() -> None:
    with deferred():
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        copy = nn.Linear(4, 4)
        copy.load_state_dict(first.state_dict())
    materialize_(first)
    assert second.weight.is_meta
    assert copy.weight.is_meta
    assert torch.equal(materialize_(copy).weight, first.weight)


def test_what_is_lazy_stays_lazy() -> None:
    for build in (lambda: nn.LazyLinear(3), lambda: nn.Sequential(nn.LazyConv1d(3, 1), nn.ReLU())):
        model = materialize_(recorded(build))
        assert (
            model(torch.ones(2, 4, 1) if isinstance(model, nn.Sequential) else torch.ones(2, 4))
            .isfinite()
            .all()
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_scripted_before_it_has_values_is_refused() -> None:
    model = recorded(lambda: nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2))))
    with pytest.raises(ValueError, match=r"torch\.jit holds .*: module 1; script after"):
        materialize_(model)
    assert model[0].weight.is_meta


def test_other_threads_build_modules_with_values() -> None:
    built: list[nn.Module] = []
    with deferred():
        other = threading.Thread(target=lambda: built.append(nn.Linear(4, 4)))
        other.start()
        other.join()
        model = nn.Linear(4, 4)
    assert model.weight.is_meta
    assert not built[0].weight.is_meta


def test_one_block_at_a_time() -> None:
    refused: list[BaseException] = []

    def block() -> None:
        try:
            with deferred():
                pass
        except RuntimeError as error:
            refused.append(error)

    with deferred():
        other = threading.Thread(target=block)
        other.start()
        other.join()
        model = nn.Linear(4, 4)
        nn.init.orthogonal_(model.weight)
    assert "already in force" in str(refused[0])
    assert recorded_plan(model)["weight"].distribution == "orthogonal"
    weight = nn.init.orthogonal_(torch.empty(4, 4))
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))  # 1e-5: float32's default


def test_lines_of_packages_whose_names_begin_with_torch_are_not_torchs() -> None:
    package = str(frames.Path(torch.__file__).parent)
    assert frames.is_inside(f"{package}/nn/init.py")
    for name in ("vision/ops.py", "_geometric/nn.py"):
        assert not frames.is_inside(package + name)


def test_dtype_of_memory_that_is_read_as_another_dtype_is_refused() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Parameter(torch.view_as_real(torch.randn(4, dtype=torch.complex64)))

    model = recorded(Parts)
    with pytest.raises(ValueError, match=r"both is a view of torch\.complex64 memory"):
        materialize_(model, dtype=torch.bfloat16)
    assert model.both.is_meta
    assert materialize_(model).both.shape == (4, 2)


def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    import gc

    from fastinit.record.memories import Memory

    gc.collect()
    before = sum(type(o) is Memory for o in gc.get_objects())
    model = recorded()
    given = recorded(lambda: nn.ParameterList([torch.arange(5.0), torch.zeros(3)]))
    assert sum(type(o) is Memory for o in gc.get_objects()) > before
    materialize_(given)
    del model, given
    gc.collect()
    assert sum(type(o) is Memory for o in gc.get_objects()) == before
    assert fastinit.recorded_plan(recorded(nn.ReLU)) == fastinit.Plan({})
