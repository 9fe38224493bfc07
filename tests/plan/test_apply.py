"""apply_ to a part: what is asked for is written, as in the whole model, and nothing else is touched."""

import gc
import re
import sysconfig
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit import Fill, Part, Plan, recipes
from fastinit.stream.laws import kernel_params


class Block(nn.Module):
    """What a pipeline stage may be: a norm with buffers and two matrices, one of them orthogonal."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)


class Net(nn.Module):
    """Blocks between an embedding and the output that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.h = nn.ModuleList(Block() for _ in range(11))
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight


def rule(name: str, module: nn.Module, shape: torch.Size, config: object) -> Fill | None:
    if name.endswith("down.weight"):
        return Fill.orthogonal()
    return recipes.torch_default(name, module, shape, config)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by all their names, and buffers."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.from_model(Net(), rule, seed=4)


@pytest.fixture(scope="module")
def whole(plan: Plan) -> dict[str, torch.Tensor]:
    return tensors(plan.apply_(Net()))


def blank() -> Net:
    """A model of which every value is 7."""
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


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


# --- parts of a model ------------------------------------------------------------------------------


def test_a_part_by_itself_gets_what_it_has_in_the_whole(
    plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    for name, module in blank().named_modules():
        prefix = f"{name}." if name else ""
        assert plan.apply_(module, prefix=prefix) is module
        for own, tensor in tensors(module).items():
            assert torch.equal(tensor, whole[prefix + own]), prefix + own


def test_a_part_alone_may_be_on_meta_and_of_another_dtype(
    plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    stage = nn.ModuleDict({"up": nn.Linear(6, 12, device="meta"), "down": nn.Linear(12, 6)})
    plan.apply_(stage, prefix="h.10.", only="h.10.up.*", device="cpu", dtype=torch.float64)
    assert torch.equal(stage["up"].weight.float(), whole["h.10.up.weight"])
    assert stage["up"].weight.dtype == torch.float64
    assert stage["down"].weight.dtype == torch.float32
    assert not torch.equal(stage["down"].weight, whole["h.10.down.weight"])


def test_a_part_has_a_tied_parameter_by_the_name_that_it_has(
    plan: Plan, whole: dict[str, torch.Tensor]
) -> None:
    """The first and the last stage of a pipeline each have it, under different names."""
    for prefix in ("head.", "embed."):
        last = nn.Module()
        last.register_parameter("weight", nn.Parameter(torch.zeros(10, 6)))
        plan.apply_(last, prefix=prefix)
        assert torch.equal(last.weight, whole["embed.weight"])
    stage = nn.ModuleDict({"head": nn.Linear(6, 10, bias=False)})  # its names are the whole model's
    assert torch.equal(plan.apply_(stage, only="head.*")["head"].weight, whole["embed.weight"])


@pytest.mark.parametrize(
    ("prefix", "error", "message"),
    [
        ("h.1", ValueError, r"prefix must be all .* 'h\.1\.', but got 'h\.1'"),
        ("h.11.", ValueError, r"the plan has no parameters h\.11\.up\.weight, h\.11\.up\.bias"),
        (
            "h.",
            ValueError,
            r"the plan has no .*h\.up\.weight.*; the model has no .*h\.0\.up\.weight",
        ),
        ("", ValueError, r"the plan has no parameters up\.weight"),
        (None, TypeError, "prefix must be a str"),
        (("h.1.",), TypeError, "prefix must be a str"),
    ],
)
def test_a_prefix_is_all_that_is_before_the_names(
    prefix: Any, error: type[Exception], message: str, plan: Plan
) -> None:
    block = Block()
    before = {name: tensor.clone() for name, tensor in tensors(block).items()}
    with pytest.raises(error, match=message):
        plan.apply_(block, prefix=prefix)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(block).items())


def test_a_part_has_all_that_the_plan_has_of_it(plan: Plan) -> None:
    block = Block()
    block.gain = nn.Parameter(torch.ones(1))
    del block.up
    with pytest.raises(
        ValueError, match=r"no parameter h\.0\.gain; .* no parameters h\.0\.up\.weight"
    ):
        plan.apply_(block, prefix="h.0.")
    with pytest.raises(
        ValueError, match=r"no parameter under h\.0\. matches patterns h\.1\.\*, up\.\*"
    ):
        plan.apply_(block, prefix="h.0.", only=("h.1.*", "up.*", "*.bias"))


def test_a_plan_of_many_names_is_asked_for_many_of_them() -> None:
    """As many names as parameters: not each compared with each, which would take minutes."""
    names = [f"h.{i}.w" for i in range(20_000)]
    plan = Plan(dict.fromkeys(names, Fill.constant(1.0)))
    layer = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2))})
    plan.apply_(layer, prefix="h.7.", only=names[7:8])
    with pytest.raises(ValueError, match="the model has no parameters"):
        plan.apply_(nn.Module(), only=names)


@pytest.mark.parametrize("name", ["h.3.up.*", "head.*", "h.1.norm.*", "h.2.norm.running_mean"])
def test_what_a_part_lacks_is_said(name: str, recorded: tuple[Net, Plan]) -> None:
    """Of parts others may have it; who has no parts has all that is asked for, buffers too."""
    _, plan = recorded
    stage = nn.ModuleDict({"0": nn.Linear(6, 12), "1": nn.Identity(), "2": nn.BatchNorm1d(6)})
    del stage["2"].running_mean
    before = {own: tensor.clone() for own, tensor in tensors(stage).items()}
    with pytest.raises(ValueError, match=r"no parameter under h\.2|the model has nothing of"):
        plan.apply_(stage, prefix="h.2.", only=name)
    shapes = {own: tuple(tensor.shape) for own, tensor in before.items()}
    where = {own: Part(shape, name=own.replace("0.", "h.2.up.")) for own, shape in shapes.items()}
    with pytest.warns(UserWarning, match=rf"matches pattern {re.escape(name)};") as told:
        plan.apply_(stage, parts=where, only=name)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=rf"matches pattern {re.escape(name)};"):
        plan.apply_(stage, parts=where, only=(name, "h.2.up.bias"))
    for own, tensor in tensors(stage).items():
        assert torch.equal(tensor, before[own]) is (own != "0.bias"), own


@pytest.mark.parametrize("name", ["head.*", "embed.weight", "h.0.norm.*_mean", "scale", "*"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_nothing_is_said_of_what_is_there(
    name: str, is_cut: bool, plan: Plan, recwarn: pytest.WarningsRecorder
) -> None:
    """By any name of what is tied, as a buffer, and as a plain attribute that has its values."""
    with fastinit.deferred():
        model = Net()
        model.scale = model.head.weight.sum()
    plan = fastinit.recorded_plan(model)
    fastinit.materialize_(model)
    plan.apply_(model, only=name, parts={} if is_cut else None)
    assert not recwarn.list


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
        *(
            [(torch.float8_e8m0fnu, NotImplementedError)]
            if hasattr(torch, "float8_e8m0fnu")
            else []
        ),
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


# --- buffers ---------------------------------------------------------------------------------------


@pytest.fixture
def recorded() -> tuple[Net, Plan]:
    """A model that was trained, so that no buffer is as it was, and its recorded plan."""
    with fastinit.deferred(seed=4):
        model = Net()
    plan = fastinit.recorded_plan(model)
    fastinit.materialize_(model)
    for buffer in model.buffers():
        buffer.fill_(3)
    return model, plan


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
