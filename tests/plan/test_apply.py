"""apply_ to a part: what is asked for is written, as in the whole model, and nothing else is touched."""

import gc
import sysconfig
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from planned import Block, Net, blank, plan, recorded, rule, tensors, whole
from torch import nn

import fastinit
from fastinit import Fill, Plan
from fastinit.stream.laws import kernel_params

__all__ = ["plan", "recorded", "whole"]  # fixtures

TIED = ("embed.weight", "head.weight")
ONLY: dict[str, tuple[Any, Callable[[str], bool]]] = {
    "all": ("*", lambda name: True),
    "a name": ("h.1.up.weight", lambda name: name == "h.1.up.weight"),
    "a layer, not the tenth": ("h.1.*", lambda name: name.startswith("h.1.")),
    "layers": (["h.[2-4].*", "h.10.*"], lambda name: name[2:].split(".")[0] in {"2", "3", "4", "10"}),
    "a kind": ("*.bias", lambda name: name.endswith("bias")),
    "names": (
        (f"h.{i}.up.bias" for i in range(0, 11, 5)),
        lambda name: name in ("h.0.up.bias", "h.5.up.bias", "h.10.up.bias"),
    ),
    "a tied one by its second name": ("head.weight", lambda name: name in TIED),
    "a tied one by both": ({"head.*": 1, "embed.*": 2}, lambda name: name in TIED),
    "one twice": (("h.0.up.*", "h.0.*.weight"), lambda name: name[:4] == "h.0." and (
        name.startswith("h.0.up") or name.endswith("weight")
    )),
}  # fmt: skip


@pytest.mark.parametrize("case", ONLY)
def test_only_what_is_asked_for_is_written(
    case: str, plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    only, is_meant = ONLY[case]
    model = blank()
    before = {name: (t, t._version) for name, t in tensors(model).items()}
    plan.apply_(model, only=only)
    written = 0
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if is_meant(name):
            assert torch.equal(tensor, whole[name]), name
            written += 1
        else:
            assert bool((tensor == 7.0).all()), name
            assert tensor._version == before[name][1], name
    assert written
    assert written < len(list(model.parameters())) or case == "all"


IDLE: dict[str, tuple[Any, type[Exception], str]] = {
    "a name": ("h.11.up.weight", ValueError, r"no parameter matches pattern h\.11\.up\.weight$"),
    "two of three": (
        ("*.bias", "*.gain", "x"),
        ValueError,
        r"no parameter matches patterns \*\.gain, x$",
    ),
    "a module": ("h.1", ValueError, r"pattern h\.1 \(h\.1\.\* is all in it\)$"),
    "a buffer that no plan of a recipe knows": (
        "h.0.norm.running_mean",
        ValueError,
        "no parameter",
    ),
    "other letters": ("H.1.*", ValueError, r"H\.1\.\*"),
    "nothing": ([], ValueError, "only must be a pattern of names, or several, but got none"),
    "empty text": ("", ValueError, "no parameter matches pattern"),
    "a function": (lambda name: True, TypeError, "only must be a pattern of names"),
    "a number": (3, TypeError, "only must be a pattern of names"),
    "numbers": ([1, 2], TypeError, "but got 1"),
    "bytes": (b"*", TypeError, "only must be a pattern"),
}


@pytest.mark.parametrize("case", IDLE)
def test_what_chooses_nothing_is_refused(case: str, plan: Plan) -> None:
    only, error, message = IDLE[case]
    model = blank()
    with pytest.raises(error, match=message):
        plan.apply_(model, only=only)
    assert all(bool((p == 7.0).all()) for p in model.parameters())


def other_dtype(block: Block) -> None:
    block.up.weight = nn.Parameter(torch.ones(12, 6, dtype=torch.int8), requires_grad=False)


def more(block: Block) -> None:
    block.up.register_parameter("lora_A", nn.Parameter(torch.zeros(2, 6)))


def lazy(block: Block) -> None:
    block.up = nn.LazyLinear(12)


def freed(block: Block) -> None:
    block.up.weight.untyped_storage().resize_(0)


def another_shape(block: Block) -> None:
    block.down = nn.Linear(3, 3)


def on_meta(block: Block) -> None:
    block.to("meta")


def gone(block: Block) -> None:
    del block.up


def tied(block: Block) -> None:
    block.down.bias = block.norm.bias


UNFIT = (other_dtype, more, lazy, freed, on_meta, gone, tied)


@pytest.mark.parametrize("change", [*UNFIT, another_shape])
def test_others_may_be_whatever_they_are(
    change: Callable[[Block], None], plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    model = blank()
    change(model.h[3])
    before = list(model.h[3].parameters())
    plan.apply_(model, only="h.2.*", device="cpu")
    assert torch.equal(model.h[2].down.weight, whole["h.2.down.weight"])
    assert all(a is b for a, b in zip(model.h[3].parameters(), before))
    assert all(p.is_meta for p in before) == (change is on_meta)


@pytest.mark.parametrize("change", UNFIT)
def test_what_is_asked_for_has_to_fit(change: Callable[[Block], None], plan: Plan) -> None:
    model = blank()
    change(model.h[3])
    with pytest.raises((ValueError, NotImplementedError, RuntimeError), match=r"h\.3\."):
        plan.apply_(model, only=("h.3.*", "embed.*"))
    assert bool((model.embed.weight == 7.0).all())


def test_a_tie_is_one_parameter_whichever_name_is_asked_for() -> None:
    untied, model = Net(), Net()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    apart = Plan.from_model(untied, rule)
    together = Plan.from_model(model, rule)
    for name in TIED:
        with pytest.raises(
            ValueError, match=r"in the plan but not in the model: embed.weight, head"
        ):
            together.apply_(untied, only=name)
        with pytest.raises(
            ValueError, match=r"in the model but not in the plan: embed.weight, head"
        ):
            apart.apply_(model, only=name)


# --- dtypes ----------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Parameters of several dtypes, all of which can be written."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        for dtype in (torch.float32, torch.float16, torch.float64, torch.complex64):
            name = str(dtype).partition(".")[2]
            self.register_parameter(name, nn.Parameter(torch.zeros(5, dtype=dtype, device=device)))


@pytest.mark.parametrize(
    "dtype", [None, torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
def test_a_dtype_is_that_of_what_gets_memory(dtype: torch.dtype | None) -> None:
    with fastinit.deferred(seed=3):
        recorded = nn.Linear(4, 4)
    plan = fastinit.recorded_plan(recorded)
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    plan.apply_(model, device="cpu", dtype=dtype)
    fastinit.materialize_(recorded, dtype=dtype)  # the same rule
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, getattr(recorded, name))
        assert parameter.dtype == (dtype or torch.float32)

    mixed = Mixed("meta")
    Plan({name: Fill.normal() for name, _ in mixed.named_parameters()}).apply_(
        mixed, device="cpu", dtype=dtype
    )
    for name, parameter in mixed.named_parameters():
        wanted = getattr(torch, name)
        assert parameter.dtype == (dtype if dtype and wanted.is_floating_point else wanted)


def test_memory_of_another_dtype_is_an_error_and_left_as_it_is() -> None:
    model = Mixed()
    plan = Plan({name: Fill.constant(1.0) for name, _ in model.named_parameters()})
    with pytest.raises(
        ValueError,
        match=r"dtype=torch.float64 is for .* model\.to\(torch\.float64\) first: parameters float32 "
        r"\(torch\.float32\), float16 \(torch\.float16\)$",
    ):
        plan.apply_(model, dtype=torch.float64)
    assert not any(p.any() for p in model.parameters())
    model.float32 = nn.Parameter(model.float32.detach().to("meta"))
    with pytest.raises(ValueError, match=r"parameters float16 .*, float64"):
        plan.apply_(model, device="cpu", dtype=torch.bfloat16)
    assert model.float32.is_meta
    plan.apply_(model, device="cpu", dtype=torch.bfloat16, only=("float32", "complex64"))
    assert model.float32.dtype == torch.bfloat16
    plan.apply_(Mixed(), dtype=torch.float32, only="float32")  # nothing to be done


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        (torch.int32, ValueError),
        (torch.complex64, ValueError),
        (torch.bool, ValueError),
        (torch.float8_e8m0fnu, NotImplementedError),
        ("bfloat16", TypeError),
        (float, TypeError),
    ],
)
def test_what_is_no_dtype_for_weights(dtype: Any, error: type[Exception], plan: Plan) -> None:
    with torch.device("meta"):
        model = Net()
    with pytest.raises(error, match="dtype"):
        plan.apply_(model, device="cpu", dtype=dtype, buffers="keep")
    assert all(p.is_meta for p in model.parameters())


def means(model: Net) -> list[float]:
    return [float(block.norm.running_mean[0]) for block in model.h]


def test_buffers_are_chosen_by_name_as_parameters_are(recorded: tuple[Net, Plan]) -> None:
    model, plan = recorded
    plan.apply_(model, only="h.1.up.*")  # no buffer is meant
    assert means(model) == [3.0] * 11
    with pytest.raises(
        ValueError, match=r"^buffers h\.1\.norm\.running_mean, h\.1\.norm\.running_var"
    ):
        plan.apply_(model, only="h.1.*")
    plan.apply_(model, only="h.1.*", buffers="keep")
    assert means(model) == [3.0] * 11
    plan.apply_(model, only="h.1.*", buffers="restore")
    assert means(model) == [3.0, 0.0, *[3.0] * 9]
    plan.apply_(model, only="h.[45].norm.running_*", buffers="restore")  # buffers alone
    assert means(model) == [3.0, 0.0, 3.0, 3.0, 0.0, 0.0, *[3.0] * 5]
    assert int(model.h[4].norm.num_batches_tracked) == 3


def test_buffers_of_a_part_are_those_of_the_whole(recorded: tuple[Net, Plan]) -> None:
    model, plan = recorded
    with pytest.raises(
        ValueError, match=r"^buffers h\.10\.norm\.running_mean, h\.10\.norm\.running_v"
    ):
        plan.apply_(model.h[10], prefix="h.10.")
    plan.apply_(model.h[10], prefix="h.10.", buffers="restore")
    assert means(model) == [*[3.0] * 10, 0.0]
    with torch.device("meta"):
        stage = Block()
    plan.apply_(stage, prefix="h.3.", device="cpu")
    assert not stage.norm.running_mean.any()


def test_buffers_on_meta_stay_there_if_nobody_asks_for_them(plan: Plan) -> None:
    with torch.device("meta"):
        model = Net()
    with pytest.raises(ValueError, match=r"cannot write buffers h\.1\.norm\.running_mean"):
        plan.apply_(model, only="h.1.*", device="cpu")
    plan.apply_(model, only=("h.1.up.*", "h.1.*.bias"), device="cpu")
    on_cpu = {name for name, tensor in tensors(model).items() if not tensor.is_meta}
    assert on_cpu == {"h.1.up.weight", "h.1.up.bias", "h.1.down.bias", "h.1.norm.bias"}


def test_iterables_are_read_once(plan: Plan, whole: dict[str, torch.Tensor]) -> None:
    def names() -> Iterable[str]:
        yield from ("h.0.up.weight", "h.0.up.bias")

    model = plan.apply_(blank(), only=names())
    assert torch.equal(model.h[0].up.bias, whole["h.0.up.bias"])


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="the free-threaded collector has no generation of what is new",
)
def test_leaves_the_collector_nothing_to_walk_through() -> None:
    """What a call makes for each of thousands of parameters is gone when cycles are looked for again."""
    model = nn.ParameterList(nn.Parameter(torch.empty(2)) for _ in range(3000))
    plan = Plan({name: Fill.normal() for name, _ in model.named_parameters()})
    plan.apply_(model)  # what is noted of each tensor stays
    young: list[int] = []
    gc.collect()

    def note(phase: str, info: object) -> None:
        young.append(len(gc.get_objects(generation=0)))

    gc.callbacks.append(note)
    try:
        plan.apply_(model)
        gc.collect()
    finally:
        gc.callbacks.remove(note)
    assert young
    assert max(young) < 1000  # or three for each parameter and more, if they were there still


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_the_default_device_changes_nothing_that_is_written(dtype: torch.dtype) -> None:
    third = 1 / (3 + dtype.itemsize)
    fills = {
        "uniform": Fill.uniform(-third, third),
        "normal": Fill.normal(third, third),
        "truncated": Fill.truncated_normal(third, third, -third, 1.0),
        "constant": Fill.constant(third),
    }
    written = []
    for device in ("meta", "cpu"):
        model = nn.ParameterDict({n: torch.zeros(6, 7, dtype=dtype) for n in fills})
        model.requires_grad_(False)
        kernel_params.cache_clear()
        with torch.device(device):
            stepped = Fill.constant(third).then("exp")
            Plan(fills, seed=1).apply_(model)
        written.append({name: value.float().tolist() for name, value in model.items()})
        written[-1]["stepped"] = repr(stepped)
    assert written[0] == written[1]
