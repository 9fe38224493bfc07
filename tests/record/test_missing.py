"""fill_missing_ and audit: what a load left out is what the constructor gives, and all else stays."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastinit
from fastinit import (
    DeferredError,
    Plan,
    audit,
    deferred,
    fill_missing_,
    materialize_,
    recipes,
    recorded_plan,
)

FILE = {"embed.weight": torch.full((5, 3), 2.0), "norm.weight": torch.full((3,), 3.0)}
"""What is loaded: of the tied parameter one name, as safetensors has it."""

FILLED = ["copy", "norm.bias", "head.weight", "head.bias"]
"""Parameters that FILE lacks."""


class Net(nn.Module):
    """Tied embeddings with a padding row, a norm, buffers of every kind, and a copy of a parameter."""

    table: Tensor
    noise: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=1)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)
        self.copy = nn.Parameter(self.embed.weight.detach().clone())
        self.register_buffer("table", torch.arange(4.0) / 3, persistent=False)
        self.register_buffer("noise", torch.randn(4))


def build(seed: int = 0) -> Net:
    with deferred(seed):
        return Net()


def whole(seed: int = 0) -> Net:
    return materialize_(build(seed))


def garbage_(model: nn.Module) -> nn.Module:
    """What to_empty leaves, and more surely so."""
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(77)
    return model


def assigned(model: Net) -> Any:
    return model.load_state_dict(FILE, strict=False, assign=True).missing_keys


def assigned_unnamed(model: Net) -> Any:
    assigned(model)


def emptied(model: Net) -> Any:
    return garbage_(model).load_state_dict(FILE, strict=False).missing_keys


def emptied_data(model: Net) -> Any:
    garbage_(model)
    for name, values in FILE.items():
        model.get_parameter(name).data.copy_(values)
    return [name for name in model.state_dict() if name not in FILE and "num_" not in name]


def half_emptied(model: Net) -> Any:
    missing = assigned(model)
    model.head.to_empty(device="cpu")
    return missing


def exchanged(model: Net) -> Any:
    model.embed.weight = nn.Parameter(FILE["embed.weight"].clone())
    model.norm.weight = nn.Parameter(FILE["norm.weight"].clone())


def patterns(model: Net) -> Any:
    assigned(model)
    return ["out.*", "head.*", "norm.bias", "norm.run*", "co[p]y", "noise"]


@pytest.mark.parametrize(
    "load",
    [assigned, assigned_unnamed, emptied, emptied_data, half_emptied, exchanged, patterns],
)
def test_what_was_not_loaded_is_what_the_constructor_gives(load: Callable[[Net], Any]) -> None:
    expected, model = whole(), build()
    done = fill_missing_(model, load(model))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "num_" not in name:  # torch loads it from itself, so that it is whatever was there
            loaded = FILE.get(name)
            wanted = expected.state_dict(keep_vars=True).get(name, expected.table)
            assert torch.equal(tensor, wanted if loaded is None else loaded), name
    assert model.out.weight is model.embed.weight
    assert done.tied == {"out.weight": "embed.weight"}
    assert [name for name in done.filled if name in dict(model.named_parameters())] == FILLED
    assert not done.missing
    assert {each.name for each in done.tensors} == {
        *dict(model.named_parameters()),
        *dict(model.named_buffers()),
    }
    assert set(FILE) <= set(done.loaded + done.left)


def test_whole_or_by_a_plan_of_a_twin() -> None:
    expected, eager = whole(seed=3), Net()
    loaded = eager.load_state_dict(FILE, strict=False)
    before = eager.embed.weight
    done = fill_missing_(eager, loaded.missing_keys, plan=recorded_plan(build()), seed=3)
    assert torch.equal(eager.head.weight, expected.head.weight)
    assert torch.equal(eager.noise, expected.noise)
    assert eager.embed.weight is before
    assert done.loaded == [*FILE]
    assert "norm.num_batches_tracked" in done.names("made")
    assert set(done.filled) == {*FILLED, "noise"}


class Counted(nn.Module):
    """Loads what no file has, as BatchNorm does; the other buffer is missing like any."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}steps", self.steps)
        super()._load_from_state_dict(state, prefix, *rest)


class Failing(Counted):
    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}mean" not in state:
            raise KeyError("mean")
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize(
    ("make", "claimed"),
    [
        (lambda: nn.BatchNorm1d(3), ["num_batches_tracked"]),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), ["num_batches_tracked"]),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), []),
        (Counted, ["steps"]),
        (Failing, []),
    ],
)
@pytest.mark.parametrize("value", [0.0, -77.0])
def test_what_a_module_calls_loaded_is_not_said_to_be(
    make: Callable[[], nn.Module], claimed: list[str], value: float
) -> None:
    with deferred():
        model = make()
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(value)
    versions = [buffer._version for buffer in model.buffers()]
    done = fill_missing_(model, [name for name, _ in model.named_parameters()])
    assert done.names("changed" if value else "made") == claimed
    noted = [each.name for each in done.tensors if "its module calls it loaded" in each.note]
    assert noted == claimed
    assert set(done.loaded) == {name for name, _ in model.named_buffers()} - set(claimed)
    assert [buffer._version for buffer in model.buffers()] == versions


def test_a_recipe_fills_a_new_head() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plan = Plan.from_model(model, recipes.torch_default, seed=5)
    kept = model[0].weight.detach().clone()
    done = fill_missing_(model, "1.*", plan=plan)
    expected = plan.apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert torch.equal(model[1].weight, expected[1].weight)
    assert torch.equal(model[0].weight, kept)
    assert (done.loaded, done.filled) == (["0.weight", "0.bias"], ["1.weight", "1.bias"])


def test_the_seed_device_and_dtype_are_as_asked() -> None:
    model = build()
    fill_missing_(model, assigned(model), seed=9, dtype=torch.bfloat16)
    assert torch.equal(model.head.weight, whole(seed=9).head.weight.bfloat16())
    assert model.embed.weight.dtype == torch.float32
    part = build()
    fill_missing_(part.head, prefix="head.")
    assert torch.equal(part.head.weight, whole().head.weight)
    with pytest.raises(ValueError, match="device must be one that holds values"):
        fill_missing_(build(), device="meta")


def test_others_that_hold_what_is_filled_hold_it_with_values() -> None:
    model = build()
    held = [model.head.weight]
    optimizer = torch.optim.SGD([model.copy])
    fill_missing_(model, assigned(model))
    assert held[0] is model.head.weight
    assert optimizer.param_groups[0]["params"][0] is model.copy
    assert not model.copy.is_meta


def test_all_that_was_loaded_leaves_nothing_to_fill() -> None:
    model = build()
    result = model.load_state_dict(whole().state_dict(), assign=True)
    done = fill_missing_(model, result.missing_keys)
    assert not done.filled
    assert not done.missing
    assert model.out.weight is model.embed.weight  # one memory in the file, one parameter again


class Left(nn.Module):
    """A parameter that its constructor leaves unwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(3))
        self.linear = nn.Linear(3, 3)


def left() -> Left:
    with deferred():
        return Left()


def loaded_on_meta() -> tuple[nn.Module, Any]:
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is no use
        model.load_state_dict(FILE, strict=False)
    return model, None


def told_that_all_is_loaded() -> tuple[nn.Module, Any]:
    return build(), []


def untold() -> tuple[nn.Module, Any]:
    model = build()
    emptied(model)
    return model, None


def no_plan() -> tuple[nn.Module, Any]:
    return Net(), ["head.weight"]


def no_record() -> tuple[nn.Module, Any]:
    return nn.Linear(2, 2, device="meta"), None


def layers() -> nn.Sequential:
    with deferred():
        return nn.Sequential(nn.Linear(2, 2))


def copied() -> tuple[nn.Module, Any]:
    return copy.deepcopy(layers()), None


def pickled() -> tuple[nn.Module, Any]:
    return pickle.loads(pickle.dumps(layers())), None


def with_a_copied_layer() -> tuple[nn.Module, Any]:
    model = layers()
    return model.append(copy.deepcopy(model[0])), None


def copied_and_emptied() -> tuple[nn.Module, Any]:
    return copy.deepcopy(layers()).to_empty(device="cpu"), None


def left_unwritten() -> tuple[nn.Module, Any]:
    return left(), None


def of_another_shape() -> tuple[nn.Module, Any]:
    model = build()
    model.embed.weight = nn.Parameter(torch.ones(7, 3))
    return model, None


def renamed() -> tuple[nn.Module, Any]:
    return build(), ["lm_head.weight"]


def whole_result() -> tuple[nn.Module, Any]:
    model = build()
    return model, model.load_state_dict(FILE, strict=False, assign=True)


def changed_buffer() -> tuple[nn.Module, Any]:
    model = build()
    model.noise.fill_(3.0)
    missing = assigned(model)
    model.noise = torch.empty(4)
    return model, missing


def only_emptied() -> tuple[nn.Module, Any]:
    return build().to_empty(device="cpu"), None


def replaced_by_hand() -> tuple[nn.Module, Any]:
    model = build()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(p, device="cpu")))
    return model, None


REFUSED: dict[Callable[[], tuple[nn.Module, Any]], str] = {
    loaded_on_meta: "written on meta, where nothing is kept: tensors embed.weight, norm.weight",
    told_that_all_is_loaded: r"on meta, though not among the missing .*: tensors copy, embed.weight",
    only_emptied: r"nothing tells whether these were loaded, .* \(\[\]: all were\): tensors",
    replaced_by_hand: "nothing tells whether these were loaded",
    untold: "nothing tells whether these were loaded, .*: tensors copy, out.weight, norm.bias",
    no_plan: "the plan does not have them: tensor head.weight",
    no_record: r"not recorded by fastinit.deferred\(\) .*copied.*: tensors weight, bias",
    copied: r"not recorded by .*copied.*: tensors 0\.weight, 0\.bias",
    pickled: r"not recorded by .*copied.*: tensors 0\.weight, 0\.bias",
    with_a_copied_layer: r"not recorded by .*copied.*: tensors 1\.weight, 1\.bias$",
    copied_and_emptied: r"nothing tells what was loaded, as this model was not recorded by .*copied",
    left_unwritten: "left unwritten by its constructor: tensor w$",
    of_another_shape: "of other shapes here: embed.weight, out.weight",
    renamed: "the model has no tensor lm_head.weight",
    changed_buffer: "the plan does not have them: tensor noise",
}


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.named_parameters(remove_duplicate=False)]
    tensors += model.named_buffers(remove_duplicate=False)
    # As text, in which NaN, which memory without values may hold, is itself.
    return [(n, id(t), None if t.is_meta else str(t.detach().tolist())) for n, t in tensors]


@pytest.mark.parametrize("make", REFUSED)
def test_what_nobody_wrote_is_refused_by_name(make: Callable[[], tuple[nn.Module, Any]]) -> None:
    model, missing = make()
    before = state(model)
    with pytest.raises(ValueError, match=f"nothing was filled: .*{REFUSED[make]}"):
        fill_missing_(model, missing)
    assert state(model) == before


def test_names_must_be_names() -> None:
    model, result = whole_result()
    for wrong in (result, 3, [3]):
        with pytest.raises(TypeError, match="missing must be names of tensors, but got"):
            fill_missing_(model, wrong)
    fill_missing_(model, result.missing_keys)


def test_a_failure_while_writing_unties_again() -> None:
    model = build()
    missing = assigned(model)
    before = state(model)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_missing_(model, missing, progress=stop)
    assert state(model) == before
    assert fill_missing_(model, missing).tied


def test_what_the_constructor_left_unwritten_may_be_loaded() -> None:
    model = left()
    model.load_state_dict({"w": torch.ones(3)}, strict=False, assign=True)
    assert fill_missing_(model).filled == ["linear.weight", "linear.bias"]
    model = left()
    model.to_empty(device="cpu")
    result = model.load_state_dict({"w": torch.ones(3)}, strict=False)
    assert fill_missing_(model, result.missing_keys).filled == ["linear.weight", "linear.bias"]


def test_one_name_of_a_tied_parameter_alone_is_not_written() -> None:
    """materialize_ would give it the constructor's values, and untie the model."""
    model = build()
    assigned(model)
    for function in (materialize_, recorded_plan):
        with pytest.raises(ValueError, match=r"tie them again, .*: parameter out.weight \(of emb"):
            function(model)
    model.out.weight = model.embed.weight
    materialize_(model)
    assert torch.equal(model.head.weight, whole().head.weight)


def test_memory_that_is_shared_in_another_way_is_refused() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.Parameter(torch.randn(4, 4))
            self.row = nn.Parameter(self.all.data[1])

    with deferred():
        model = Views()
    model.load_state_dict({"all": torch.ones(4, 4)}, strict=False, assign=True)
    with pytest.raises(ValueError, match=r"share memory .*: parameter row \(of all\)"):
        fill_missing_(model)


STATES: dict[str, Callable[[], tuple[nn.Module, dict[str, str]]]] = {
    "eager": lambda: (nn.Linear(2, 2), {"weight": "given", "bias": "given"}),
    "on meta": lambda: (
        nn.Linear(2, 2, device="meta"),
        dict.fromkeys(["weight", "bias"], "unwritten"),
    ),
    "lazy": lambda: (nn.LazyLinear(2), dict.fromkeys(["weight", "bias"], "lazy")),
}


def of_recorded(change: Callable[[Net], Any]) -> Callable[[], dict[str, str]]:
    def states() -> dict[str, str]:
        model = build()
        change(model)
        return {each.name: each.state for each in audit(model).tensors}

    return states


def loaded_in_place(model: Net) -> None:
    materialize_(model).load_state_dict(FILE, strict=False)


def of_other_rotary(model: Net) -> None:
    model.table = model.table + 1


RECORDED: list[tuple[Callable[[Net], Any], dict[str, str]]] = [
    (lambda m: None, {"embed.weight": "recorded", "noise": "recorded", "table": "made"}),
    (materialize_, {"embed.weight": "filled", "noise": "filled", "table": "made"}),
    (loaded_in_place, {"embed.weight": "written", "head.weight": "filled"}),
    (assigned, {"embed.weight": "given", "out.weight": "recorded", "norm.running_mean": "made"}),
    (emptied, {"embed.weight": "written", "head.weight": "given", "table": "changed"}),
    (of_other_rotary, {"table": "changed"}),
    (lambda m: m.table.add_(1), {"table": "written"}),
    (lambda m: materialize_(m).to(torch.float64), {"embed.weight": "given", "table": "made"}),
    (lambda m: garbage_(materialize_(m)), {"embed.weight": "given", "table": "changed"}),
]


@pytest.mark.parametrize(("change", "expected"), RECORDED)
def test_the_audit_says_who_wrote_what(
    change: Callable[[Net], Any], expected: dict[str, str]
) -> None:
    states = of_recorded(change)()
    assert {name: states[name] for name in expected} == expected


@pytest.mark.parametrize("name", STATES)
def test_the_audit_of_what_was_not_recorded(name: str) -> None:
    model, expected = STATES[name]()
    assert {each.name: each.state for each in audit(model).tensors} == expected
    if name == "on meta":
        plan = Plan.from_model(model, recipes.torch_default)
        assert audit(model, plan).names("recorded") == list(expected)


def test_an_audit_is_a_value_and_a_table() -> None:
    model = nn.ModuleDict({f"{'long_name_' * 6}{i}": nn.Linear(2, 2) for i in range(3)})
    model["again"] = nn.Linear(2, 2)
    model["again"].weight = model[f"{'long_name_' * 6}0"].weight
    said = audit(model)
    assert said == audit(model)
    assert all(len(line) <= 80 for line in str(said).splitlines())
    assert said.tied == {"again.weight": f"{'long_name_' * 6}0.weight"}
    assert said.left == [each.name for each in said.tensors]


def test_a_copy_has_the_numbers_of_what_was_loaded_elsewhere() -> None:
    """What it was copied from had numbers of its own name, and these are the copy's too."""
    model = build()
    fill_missing_(model, assigned(model))
    assert torch.equal(model.copy, whole().embed.weight)
    assert torch.equal(model.copy[1], torch.zeros(3))  # the padding row


def test_a_buffer_that_is_nearly_as_it_was_is_put_back() -> None:
    """Rotary frequencies end in small numbers; an allocator may give the same memory again, in part."""
    model = build()
    model.table = model.table.clone()
    model.table[1] += 1e-6
    assert audit(model).names("changed") == ["table"]
    fill_missing_(model, assigned(model))
    assert torch.equal(model.table, whole().table)


def test_modules_that_are_equal_or_have_no_hash_are_told_apart() -> None:
    @dataclasses.dataclass(unsafe_hash=True)
    class Same(nn.Module):
        size: int = dataclasses.field(compare=True)

        def __post_init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(self.size) * next(scales))

    class NoHash(nn.Module):
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    scales = iter((1.0, 10.0))
    with deferred():
        one, other = Same(64), Same(64)
        NoHash()
    assert one == other
    for module in (one, other):
        module.to_empty(device="cpu")
        fill_missing_(module, ["weight"])
    assert other.weight.std() > 5 * one.weight.std()


def test_what_was_built_is_forgotten_with_its_module() -> None:
    from fastinit.record import built

    before = len(built._BUILT)
    model = build()
    assert len(built._BUILT) > before
    del model
    gc.collect()
    assert len(built._BUILT) == before


class Derived(nn.Module):
    """What is computed from a parameter, wherever a module keeps it."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("average", self.weight.detach() * 2)
        self.plain = self.weight.detach() + 1
        self.kept = [self.weight.detach().clone()]


@pytest.mark.parametrize("way", ["assign", "empty"])
def test_what_was_computed_from_a_loaded_parameter_is_the_constructor_s(way: str) -> None:
    with deferred():
        model = Derived()
    with deferred():
        expected = materialize_(Derived())
    if way == "empty":
        model.to_empty(device="cpu")
        model.average.fill_(77)
    file = {"weight": torch.ones(4)}
    result = model.load_state_dict(file, strict=False, assign=way == "assign")
    done = fill_missing_(model, result.missing_keys)
    assert (done.loaded, done.filled) == (["weight"], ["average", "plain"])
    assert torch.equal(model.average, expected.average)
    assert torch.equal(model.plain, expected.plain)
    if way == "assign":  # what the record is written to, it is written to for whoever holds it
        assert torch.equal(model.kept[0], expected.kept[0])


def test_extra_state_is_of_no_tensor() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with deferred():
        model = Extra(2, 2)
    result = model.load_state_dict({"weight": torch.ones(2, 2)}, strict=False, assign=True)
    assert "_extra_state" in result.missing_keys
    assert fill_missing_(model, result.missing_keys).filled == ["bias"]


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield torch.distributed.init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", ["empty", "assign", "nothing"])
def test_sharded_by_fsdp2(mesh: Any, way: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard

    expected, model = whole(), build()
    fully_shard(model, mesh=mesh)
    loaded = DTensor.from_local(
        torch.full((2, 3), 2.0), mesh, [Shard(0)], shape=(5, 3), stride=(3, 1)
    )
    missing = None
    if way == "empty":
        garbage_(model)
    if way != "nothing":
        result = model.load_state_dict(
            {"embed.weight": loaded}, strict=False, assign=way == "assign"
        )
        missing = result.missing_keys
    done = fill_missing_(model, missing)
    assert model.out.weight is model.embed.weight
    for name, parameter in model.named_parameters():
        full = expected.get_parameter(name).chunk(2)
        part = full[1] if len(full) > 1 else full[0][:0]
        wanted = torch.full((2, 3), 2.0) if name in done.loaded else part
        assert torch.equal(parameter.to_local(), wanted), name
    assert ("embed.weight" in done.filled) == (way == "nothing")
    assert torch.equal(model.table, expected.table)
    assert torch.equal(model.noise, expected.noise)


def test_numbers_drawn_for_shards_within_a_block_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    def build() -> None:
        with deferred():
            nn.init.normal_(nn.Parameter(distribute_tensor(torch.zeros(6, 4), mesh, [Shard(0)])))

    with pytest.raises(DeferredError, match=r"normal_.* writes a tensor of .*DTensor"):
        build()


def test_a_load_into_shards_on_meta_is_seen(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard

    model = build()
    fully_shard(model, mesh=mesh)
    loaded = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)], shape=(5, 3), stride=(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict({"embed.weight": loaded}, strict=False)
    with pytest.raises(ValueError, match=r"written on meta, .*: tensor embed.weight"):
        fill_missing_(model)


ROWS = {
    "slice": slice(4, None),
    "range": range(4, 6),
    "numbers": [5, -2],
    "tensor": torch.tensor([4, 5]),
    "bools": torch.arange(6) > 3,
}


@pytest.mark.parametrize("rows", ROWS)
def test_new_rows_are_those_of_the_larger_model(rows: str) -> None:
    plan = Plan({"weight": fastinit.Fill.normal(std=0.5)}, seed=2)
    larger = plan.apply_(nn.Embedding(6, 3))
    model = nn.Embedding.from_pretrained(torch.ones(6, 3))
    done = fill_missing_(model, {"weight": ROWS[rows]}, plan=plan)
    assert torch.equal(model.weight[4:], larger.weight[4:])
    assert torch.equal(model.weight[:4], torch.ones(4, 3))
    assert done.tensors[0].note == "rows 4:6 filled, the others loaded"


def test_rows_of_any_fill_and_of_what_is_tied() -> None:
    """A padding row is 0, as the constructor makes it; orthogonal ones are those of the whole."""
    model = whole()
    with torch.no_grad():
        model.embed.weight.fill_(9.0)
    plan = recorded_plan(build())
    done = fill_missing_(model, {"out.weight": [0, 1, 3]}, plan=plan)
    expected = whole().embed.weight
    assert torch.equal(model.embed.weight[[0, 1, 3]], expected[[0, 1, 3]])
    assert not model.embed.weight[1].any()
    assert (model.embed.weight[[2, 4]] == 9.0).all()
    assert done.tied == {"out.weight": "embed.weight"}
    linear, turned = nn.Linear(4, 4, bias=False), Plan({"weight": fastinit.Fill.orthogonal()})
    fill_missing_(linear, {"w*": [2]}, plan=turned)
    other = turned.apply_(nn.Linear(4, 4, bias=False))
    assert torch.equal(linear.weight[2], other.weight[2])
    assert not torch.equal(linear.weight, other.weight)


def test_rows_of_shards(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard

    plan = Plan({"weight": fastinit.Fill.normal()})
    larger = plan.apply_(nn.Embedding(6, 4))
    for dim, held in ((0, larger.weight[3:]), (1, larger.weight[:, 2:])):
        model = nn.Embedding(6, 4)
        model.weight = nn.Parameter(
            DTensor.from_local(torch.ones(6, 4).chunk(2, dim)[1].clone(), mesh, [Shard(dim)])
        )
        fill_missing_(model, {"weight": slice(2, 5)}, plan=plan)
        wanted = torch.ones(6, 4).chunk(2, dim)[1].clone()
        rows = slice(0, 2) if dim == 0 else slice(2, 5)
        wanted[rows] = held[rows]
        assert torch.equal(model.weight.to_local(), wanted)


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (slice(0), ValueError, None),
        ([7], ValueError, r"missing\['weight'\] must be rows of 6, but got 7"),
        (["a"], TypeError, "weight"),
        ("ab", TypeError, "must be a slice or whole numbers, but got 'ab'"),
        (torch.ones(3), TypeError, "must be of one dimension and whole"),
        (torch.ones(3, dtype=torch.bool), ValueError, "must have 6 bools, but got 3"),
    ],
)
def test_rows_must_be_rows(rows: Any, error: type[Exception], match: str | None) -> None:
    model = nn.Embedding.from_pretrained(torch.ones(6, 3))
    plan = Plan({"weight": fastinit.Fill.normal()})
    if match is not None:
        with pytest.raises(error, match=match):
            fill_missing_(model, {"weight": rows}, plan=plan)
    else:
        fill_missing_(model, {"weight": rows}, plan=plan)  # none
    assert torch.equal(model.weight, torch.ones(6, 3))


def test_rows_of_what_has_none_are_refused() -> None:
    model = build()
    assigned(model)
    with pytest.raises(ValueError, match=r"only rows are missing .*: tensor head.weight"):
        fill_missing_(model, {"head.weight": [1], "*": None})
    with pytest.raises(ValueError, match="noise has no rows"):
        fill_missing_(model, {"noise": [1]})


def test_parts_are_filled_as_parts() -> None:
    """A rank of tensor parallelism: its half of one parameter was loaded, that of another was not."""
    plan = Plan.from_model(nn.Linear(4, 6), recipes.torch_default)
    full = plan.apply_(nn.Linear(4, 6))
    model = nn.Linear(4, 3)
    halves = {n: fastinit.Part(tuple(p.shape)).chunk(0, 2, 1) for n, p in full.named_parameters()}
    kept = model.bias.detach().clone()
    fill_missing_(model, "weight", plan=plan, parts=halves)
    assert torch.equal(model.weight, full.weight[3:])
    assert torch.equal(model.bias, kept)
    fill_missing_(model, {"bias": [4]}, plan=plan, parts=halves)
    assert torch.equal(model.bias, torch.stack([kept[0], full.bias[4], kept[2]]))


@pytest.mark.parametrize("way", ["in place", "assign"])
def test_wrapped_models_go_by_names_with_and_without_wrappers(way: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    expected, model = whole(), build()
    for key in ("head", "out", "embed"):
        setattr(model, key, checkpoint_wrapper(getattr(model, key)))
    if way == "in place":
        missing = emptied(model)  # as state_dict has them
    else:
        assigned(model)
        missing = [name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta]
        assert any("_checkpoint_wrapped_module" in name for name in missing)
        missing.append("noise")
    done = fill_missing_(model, missing)
    for one, other in zip(model.head.parameters(), expected.head.parameters(), strict=True):
        assert torch.equal(one, other)
    assert done.tied == {"out.weight": "embed.weight"}
    assert done.filled[: len(FILLED)] == FILLED


def test_public_names() -> None:
    assert fastinit.fill_missing_ is fill_missing_
    assert isinstance(audit(nn.Linear(1, 1)), fastinit.Audit)
