"""peft's adapters are filled, on a base that is whole or sharded, and the base is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from loaded_models import CONFIGS, language_model, quiet, transformers
from ranks import on_ranks
from torch import Tensor, nn

from fastinit import deferred, fill_missing_, materialize_, recorded_plan
from frameworks.jobs import as_torchrun

__all__ = ["quiet"]  # a fixture of each test here

pytestmark = pytest.mark.frameworks
peft = pytest.importorskip("peft", reason="make frameworks")

TARGETS = ["q_proj", "v_proj"]
ADAPTERS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: peft.LoraConfig(r=4, target_modules=TARGETS),
    "LoRA, normal": lambda: peft.LoraConfig(
        r=4, target_modules=TARGETS, init_lora_weights="gaussian"
    ),
    "LoRA, embedding": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "o_proj"]),
    "LoRA, modules to save": lambda: peft.LoraConfig(
        r=4, target_modules=TARGETS, modules_to_save=["lm_head"]
    ),
    "DoRA": lambda: peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
    "AdaLoRA": lambda: peft.AdaLoraConfig(target_modules=TARGETS, init_r=4, total_step=10),
    "IA3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=TARGETS),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


def adapted(base: nn.Module, adapter: str = "LoRA") -> nn.Module:
    return peft.get_peft_model(base, ADAPTERS[adapter]())


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_are_filled_and_the_base_is_left(adapter: str) -> None:
    def base() -> nn.Module:
        return materialize_(language_model("llama", seed=99))

    eager = {n: p.detach() for n, p in adapted(base(), adapter).named_parameters()}
    own = {n for n, p in adapted(base(), adapter).named_parameters() if p.requires_grad}
    whole, again = base(), base()
    with deferred(seed=3):
        model = adapted(whole, adapter)
    fill_missing_(model)
    with deferred(seed=4):
        other = adapted(again, adapter)
    fill_missing_(other)
    drawn = 0
    for name, parameter in model.named_parameters():
        if name not in own or "modules_to_save" in name:
            assert torch.equal(parameter, eager[name]), name
        elif eager[name].std() == 0 or "magnitude" in name:
            torch.testing.assert_close(parameter.detach(), eager[name])
        else:
            assert not torch.equal(parameter, other.get_parameter(name)), name
            ratio = parameter.std() / eager[name].std()
            assert 0.4 < ratio < 2.5, name  # 32 numbers and more: 9 standard errors
            drawn += 1
    assert drawn or adapter == "IA3"


def test_adapters_and_what_a_file_lacks_of_the_base_are_filled_at_once() -> None:
    base = materialize_(language_model("llama", seed=99))
    kept = {name: parameter.clone() for name, parameter in base.named_parameters()}
    with deferred(seed=3):
        model = adapted(base)
    done = fill_missing_(model)
    assert done.filled == [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(done.names("kept")) == len(kept)

    def of_base(name: str) -> str:
        return name.removeprefix("base_model.model.").replace(".base_layer", "")

    file = {n: kept[of_base(n)] for n, _ in model.named_parameters() if of_base(n) in kept}
    for assign in (False, True):
        with deferred(seed=3):
            whole = adapted(transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()))
        if not assign:
            whole.to_empty(device="cpu")
        result = whole.load_state_dict(file, strict=False, assign=assign)
        fill_missing_(whole, result.missing_keys)
        for name, parameter in whole.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name


def whole_of(adapter: str) -> nn.Module:
    base = materialize_(language_model("llama", seed=99))
    with deferred(seed=3):
        model = adapted(base, adapter)
    fill_missing_(model)
    return model


@pytest.mark.parametrize("adapter", ["LoRA, embedding", "AdaLoRA"])
@on_ranks(2)
def test_adapters_that_fsdp2_shards_are_those_of_the_whole(adapter: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    with deferred(seed=3):
        model = adapted(transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()), adapter)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    base = {n for n, _ in model.named_parameters() if "lora_" not in n}
    whole = whole_of(adapter)
    for name in base:  # as loaded
        shard, values = model.get_parameter(name), whole.get_parameter(name).detach()
        with torch.no_grad():
            shard.copy_(distribute_tensor(values, mesh, shard.placements))
    fill_missing_(model, [n for n, _ in model.named_parameters() if n not in base])
    for name, parameter in model.named_parameters():
        assert torch.equal(full(parameter), whole.get_parameter(name)), name


@on_ranks(2)
def test_adapters_of_a_base_with_a_tp_plan_are_those_of_the_whole(tmp_path: Path) -> None:
    """peft shards what each rank has drawn; a twin on meta says what the whole would have."""
    from transformers.distributed import DistributedConfig

    if dist.get_rank() == 0:
        materialize_(language_model("llama", seed=99)).save_pretrained(tmp_path)
    dist.barrier()
    torch.manual_seed(dist.get_rank())
    with as_torchrun():
        base = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, distributed_config=DistributedConfig(tp_plan="auto")
        )
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj", "embed_tokens"])
    model = peft.get_peft_model(base, config)
    with deferred(seed=3):
        twin = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()), config
        )
    done = fill_missing_(model, "*lora_*", plan=recorded_plan(twin))
    materialize_(twin)
    assert len(done.filled) == 8
    sharded = 0
    for name in done.filled:
        assert torch.equal(full(model.get_parameter(name)), twin.get_parameter(name)), name
        sharded += hasattr(model.get_parameter(name), "full_tensor")
    assert sharded == 4
