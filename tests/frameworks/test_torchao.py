"""Block formats are torchao's, to the bit, and are written into its tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ranks import on_ranks
from same_bits import bits

from fastinit import Blocks, Fill, Part, Plan, deferred, init, materialize_, recorded_plan
from fastinit.stream import laws
from fastinit.stream.blocks import float8_scale_of

pytestmark = pytest.mark.frameworks
pytest.importorskip("torchao", reason="make frameworks")

ELEMENTS = {
    "mxfp8": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp4": torch.float4_e2m1fn_x2,
}
SHAPE = (48, 512)
STDS = (1.0, 0.02, 3e4, 1e-30, 1e30)
FUNCTIONS: dict[str, Any] = {
    "normal_": lambda std: {"std": std},
    "uniform_": lambda std: {"a": -std, "b": std},
    "trunc_normal_": lambda std: {"std": std, "a": -2 * std, "b": 2 * std},
}


def of_mx(wide: torch.Tensor, format: str) -> Any:
    """With the floor of the specification, section 6.3, which is torchao's default too."""
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    floor = ScaleCalculationMode.FLOOR
    return MXTensor.to_mx(wide, ELEMENTS[format], 32, scaling_mode=floor)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("format", ELEMENTS)
def test_mx(format: str, name: str, std: float) -> None:
    function, given = getattr(init, name), {"seed": 3, "name": "w", **FUNCTIONS[name](std)}
    theirs = of_mx(function(torch.empty(SHAPE), **given), format)
    ours = function(Blocks.empty(SHAPE, format), **given)
    assert bits(ours.data).equal(bits(theirs.qdata))
    assert bits(ours.scale).equal(bits(theirs.scale))
    assert ours.values().equal(theirs.dequantize(torch.float32))
    held = of_mx(torch.zeros(SHAPE), format)
    function(Blocks(held.qdata, held.scale, format), **given)
    assert held.dequantize(torch.float32).equal(ours.values())


@pytest.mark.parametrize("fixed", [None, 1.0, 1e-3])
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nvfp4(name: str, std: float, fixed: float | None) -> None:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    function, given = getattr(init, name), {"seed": 3, "name": "w", **FUNCTIONS[name](std)}
    wide = function(torch.empty(SHAPE), **given)
    ours = function(Blocks.empty(SHAPE, "nvfp4", fixed_scale=fixed), **given)
    scales = [ours.tensor_scale, *([None] if fixed == 1.0 else [])]
    for scale in scales:
        theirs = NVFP4Tensor.to_nvfp4(wide, per_tensor_scale=scale)
        assert bits(ours.data).equal(bits(theirs.qdata))
        assert bits(ours.scale).equal(bits(theirs.scale))
        assert ours.values().equal(theirs.dequantize(torch.float32))


def wide(name: str = "weight") -> torch.Tensor:
    return init.normal_(torch.empty(SHAPE), std=0.02, seed=3, name=name)


def applied(held: Any) -> Any:
    """A linear layer's weight that a plan has written where it was."""
    layer = torch.nn.Linear(SHAPE[1], SHAPE[0])
    layer.weight = torch.nn.Parameter(held, requires_grad=False)
    plan = Plan({"weight": Fill.normal(std=0.02), "bias": Fill.constant(1.0)}, seed=3)
    plan.apply_(layer)
    assert layer.bias.eq(1.0).all()
    return layer.weight


@pytest.mark.parametrize("format", ELEMENTS)
def test_a_plan_writes_mx_parameters(format: str) -> None:
    held = applied(of_mx(torch.zeros(SHAPE), format))
    assert held.dequantize(torch.float32).equal(of_mx(wide(), format).dequantize(torch.float32))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_plan_writes_nvfp4_parameters(scaled: bool) -> None:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    scale = torch.tensor(1.0) if scaled else None
    held = applied(NVFP4Tensor.to_nvfp4(torch.zeros(SHAPE), per_tensor_scale=scale))
    want = NVFP4Tensor.to_nvfp4(wide(), per_tensor_scale=held.per_tensor_scale)
    assert scaled == (held.per_tensor_scale is not None)
    assert held.dequantize(torch.float32).equal(want.dequantize(torch.float32))


@pytest.mark.parametrize("granularity", ["PerTensor", "PerRow"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_plan_writes_float8_parameters(granularity: str, dtype: torch.dtype) -> None:
    from torchao.quantization import Float8Tensor
    from torchao.quantization import granularity as kinds

    kind = getattr(kinds, granularity)()
    held = applied(Float8Tensor.from_hp(torch.zeros(SHAPE), float8_dtype=dtype, granularity=kind))
    scale = float8_scale_of(laws.normal(0.0, 0.02), dtype)
    assert held.scale.eq(scale).all()
    eight = init.normal_(
        torch.empty(SHAPE, dtype=dtype), std=0.02, seed=3, name="weight", scale=scale
    )
    assert held.dequantize().equal(eight.float() * scale)


BLOCKS = [*ELEMENTS, "nvfp4"]


def planned(net: torch.nn.Module, **given: Any) -> torch.nn.Module:
    return recorded_plan(net).apply_(net, device="cpu", **given)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("write", [planned, materialize_])
@pytest.mark.parametrize("format", BLOCKS)
def test_parameters_on_meta_become_packed_ones(format: str, write: Any, dtype: Any) -> None:
    """In place, of the values of Blocks; they run, are copied, saved, and written again."""
    with deferred(seed=3):
        net = torch.nn.Sequential(torch.nn.Linear(512, 48), torch.nn.Linear(48, 8))
        torch.nn.init.normal_(net[0].weight, std=0.02)
    weight = net[0].weight
    weight.kept = 7
    write(net, dtype=dtype, storage={"0.weight": format, "0.bias": torch.float8_e5m2})
    key: dict[str, Any] = {"std": 0.02, "seed": 3, "name": "0.weight"}
    want = init.normal_(Blocks.empty(SHAPE, format), **key)
    assert net[0].weight is weight
    assert weight.kept == 7
    assert isinstance(weight, torch.nn.Parameter)
    assert weight.dtype == net[1].weight.dtype == (dtype or torch.float32)
    assert not weight.requires_grad
    assert weight.dequantize(torch.float32).equal(want.values())
    x = torch.ones(32, 512, dtype=weight.dtype)
    out = torch.nn.functional.linear(x, weight)
    assert out.dtype == x.dtype
    if format == "nvfp4":  # of weights alone; mx rounds ones to ones
        assert out.equal(x @ weight.dequantize(x.dtype).t())
    again = copy.deepcopy(net)
    Plan({"0.weight": Fill.normal()}).apply_(again, only="0.weight", storage={"0.*": format})
    assert not again[0].weight.dequantize(torch.float32).equal(want.values())
    again.load_state_dict(net.state_dict(), assign=True)
    assert again[0].weight.dequantize(torch.float32).equal(want.values())


@pytest.mark.parametrize("format", BLOCKS)
def test_experts_become_packed_where_they_are_used_one_by_one(format: str) -> None:
    transformers = pytest.importorskip("transformers")

    def net() -> Any:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
        sizes |= {"num_hidden_layers": 1, "vocab_size": 96, "num_local_experts": 3}
        sizes["num_key_value_heads"] = 2
        with deferred(seed=3):
            return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))

    storage = {"*.experts.*": format, "*": torch.bfloat16}
    refused = net()  # which multiplies them all at once
    with pytest.raises(
        ValueError, match=r"no linear weight .*down_proj would, but .*used one by one"
    ):
        materialize_(refused, storage=storage)
    assert all(parameter.is_meta for parameter in refused.parameters())
    packed, plain = net(), materialize_(net(), dtype=torch.bfloat16)
    for model in packed, plain:
        model.set_experts_implementation("eager")
    materialize_(packed, dtype=torch.bfloat16, storage=storage)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = packed.get_parameter(name)
    want = init.normal_(Blocks.empty((3, 192, 64), format), std=0.02, seed=3, name=name)
    assert weight.dequantize(torch.float32).equal(want.values())
    x = torch.arange(8)[None]
    out, like = packed(x).logits, plain(x).logits
    assert out.isfinite().all()
    assert 0 < (out - like).norm() < 0.1 * like.norm()  # experts add little to what they get


@pytest.mark.parametrize("write", [planned, materialize_])
def test_what_cannot_be_packed_is_refused_before_anything_is_written(write: Any) -> None:
    def net(orthogonal: bool = False, view: bool = False) -> torch.nn.Module:
        with deferred(seed=3):
            made = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 48))
            made.append(torch.nn.Linear(48, 8))
            if orthogonal:
                torch.nn.init.orthogonal_(made[0].weight)
            if view:
                made.view = made[0].weight.detach()[:2]
        return made

    for made, format, said in (
        (net(), "mxfp4", "2.weight: the last size must be of whole blocks of 32"),
        (net(orthogonal=True), "nvfp4", "0.weight is stored as packed values and scales, .*orthog"),
        *([] if write is planned else [(net(view=True), "nvfp4", "other tensors .* 0.weight")]),
    ):
        with pytest.raises((NotImplementedError, ValueError), match=said):
            write(made, storage={"*": format})
        assert all(parameter.is_meta for parameter in made.parameters())


def test_a_part_is_packed_in_whole_blocks() -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    part = Part(SHAPE, name="w").chunk(0, 4, 1)
    layer = torch.nn.Linear(512, 12, bias=False, device="meta")
    plan, key = Plan({"w": Fill.normal(std=0.02)}, seed=3), {"storage": {"w": "mxfp4"}}
    plan.apply_(layer, device="cpu", parts={"weight": part}, **key)
    assert isinstance(layer.weight, MXTensor)
    want = init.normal_(Blocks.empty(SHAPE, "mxfp4"), std=0.02, seed=3, name="w")
    assert layer.weight.dequantize(torch.float32).equal(want.values()[12:24])
    cut = torch.nn.Linear(32, 48, bias=False, device="meta")
    columns = Part((48, 96), (((0, 48),), ((16, 32),)), name="w")
    with pytest.raises(ValueError, match="whole blocks"):
        plan.apply_(cut, device="cpu", parts={"weight": columns}, **key)
    assert cut.weight.is_meta


@on_ranks(2)
def test_parts_of_dtensors() -> None:
    """Packed ones are there as what from_local is given; FSDP2 can shard none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
    from torchao.quantization import Float8Tensor

    mesh, rank = init_device_mesh("cpu", (2,)), torch.distributed.get_rank()
    plan, zeros = Plan({"weight": Fill.normal(std=0.02)}, seed=3), torch.zeros(24, 512)
    for make in (
        lambda rows: of_mx(rows, "mxfp4"),
        lambda rows: NVFP4Tensor.to_nvfp4(rows, per_tensor_scale=torch.ones(())),
        lambda rows: Float8Tensor.from_hp(rows),
    ):
        local, layer = make(zeros), torch.nn.Linear(1, 1, bias=False)
        held = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        layer.weight = torch.nn.Parameter(held, requires_grad=False)
        plan.apply_(layer)
        whole = torch.nn.Linear(1, 1, bias=False)
        whole.weight = torch.nn.Parameter(make(torch.zeros(SHAPE)), requires_grad=False)
        want = plan.apply_(whole).weight.dequantize(torch.float32)
        assert local.dequantize(torch.float32).equal(want.chunk(2)[rank])
    columns = DTensor.from_local(of_mx(torch.zeros(3, 32), "mxfp4"), mesh, [Shard(0)])
    layer.weight = torch.nn.Parameter(columns, requires_grad=False)
    layer.bias = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(NotImplementedError, match="weight is stored as packed values"):
        Plan({"bias": Fill.constant(1.0), "weight": Fill.orthogonal()}).apply_(layer)
    assert not layer.bias.any()


def trained_in_float8(meta: bool) -> torch.nn.Module:
    """Weights that torchao casts as FSDP2 gathers them, one of more than a law."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    with torch.device("meta" if meta else "cpu"):
        net = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 32, bias=False))
    config = Float8LinearConfig(enable_fsdp_float8_all_gather=True, emulate=True)
    return convert_to_float8_training(net, config=config)


OF_FLOAT8 = Plan(
    {"0.weight": Fill.normal(), "0.bias": Fill.constant(1.0), "1.weight": Fill.orthogonal()}, seed=3
)


@on_ranks(2)
def test_weights_that_are_cast_as_they_are_gathered() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torchao.float8.fsdp_utils import precompute_float8_dynamic_scale_for_fsdp

    rank, plain = torch.distributed.get_rank(), torch.nn.Sequential()
    plain.extend([torch.nn.Linear(64, 48), torch.nn.Linear(48, 32, bias=False)])
    want = dict(OF_FLOAT8.apply_(plain).named_parameters())
    for meta in (False, True):
        net = fully_shard(trained_in_float8(meta), mesh=init_device_mesh("cpu", (2,)))
        OF_FLOAT8.apply_(net, device="cpu")
        for name, parameter in net.named_parameters():
            here = parameter.detach().to_local()
            assert ("weight" in name) == (type(here) is not torch.Tensor)
            assert getattr(here, "_tensor", here).equal(want[name].chunk(2)[rank]), name
        assert net(torch.ones(16, 64)).isfinite().all()
    net.reshard()
    precompute_float8_dynamic_scale_for_fsdp(net)  # which other values would make wrong
    before = net[0].bias.to_local().clone()
    with pytest.raises(NotImplementedError, match=r"0\.weight is .*_precomputed_scale"):
        Plan({**OF_FLOAT8, "0.bias": Fill.constant(2.0)}, seed=4).apply_(net)
    assert net[0].bias.to_local().equal(before)


def test_weights_that_are_cast_as_they_are_used() -> None:
    net = OF_FLOAT8.apply_(trained_in_float8(meta=False))
    again = trained_in_float8(meta=True)
    weight = again[0].weight
    assert OF_FLOAT8.apply_(again, device="cpu")[0].weight is weight
    for one, other in zip(net.parameters(), again.parameters()):
        assert one.detach().clone().equal(other.detach().clone())
    assert (
        again[1].weight._tensor.mm(again[1].weight._tensor.t()).allclose(torch.eye(32), atol=1e-5)
    )


def test_what_a_tensor_may_not_hold_is_refused_before_anything_is_written() -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    zeros, swizzled = torch.zeros(SHAPE[1], SHAPE[1]), "its scales are swizzled"
    turned = MXTensor.to_mx(zeros, torch.float4_e2m1fn_x2).t()
    for held, said in (
        (MXTensor.to_mx(zeros, torch.float8_e4m3fn, is_swizzled_scales=True), swizzled),
        (NVFP4Tensor.to_nvfp4(zeros, is_swizzled_scales=True), swizzled),
        (MXTensor.to_mx(zeros, torch.float8_e4m3fn, 64), "no format which fills write"),
        (turned, "weight"),
    ):
        layer = torch.nn.Linear(SHAPE[1], SHAPE[1])
        layer.weight = torch.nn.Parameter(held, requires_grad=False)
        bias = layer.bias.clone()
        plan = Plan({"bias": Fill.constant(1.0), "weight": Fill.normal(std=0.02)}, seed=3)
        with pytest.raises((NotImplementedError, ValueError), match=said):
            plan.apply_(layer)
        assert layer.bias.equal(bias)
        assert not held.dequantize(torch.float32).any()
