"""transformers' models, sharded or offloaded as they are loaded: what is missing is the whole's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from loaded_models import LLAMA, quiet, transformers
from ranks import on_ranks
from torch import Tensor, nn

from fastinit import DeferredError, Plan, deferred, fill_missing_, materialize_, recorded_plan
from frameworks.jobs import as_torchrun

__all__ = ["quiet"]  # a fixture of each test here

pytestmark = pytest.mark.frameworks

HEAD = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"
SHARDED = {**LLAMA, "num_attention_heads": 2, "num_hidden_layers": 2}
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SHARDED),
    "qwen3": lambda: transformers.Qwen3Config(**SHARDED, head_dim=4),
    "mixtral": lambda: transformers.MixtralConfig(**SHARDED, num_local_experts=4),
}


def planned(auto: str, config: Any) -> tuple[Plan, nn.Module]:
    with deferred(seed=3):
        twin = getattr(transformers, auto).from_config(config)
    return recorded_plan(twin), materialize_(twin)


def written(config: Any, path: Path, *without: str) -> None:
    """A checkpoint that lacks some tensors, of rank 0 for all."""
    from safetensors.torch import load_file, save_file

    if dist.get_rank() == 0:
        with deferred(seed=99):
            model = transformers.AutoModelForCausalLM.from_config(config)
        materialize_(model).save_pretrained(path)
        state = load_file(path / "model.safetensors")
        kept = {name: x for name, x in state.items() if not any(w in name for w in without)}
        assert len(kept) < len(state) or not without
        save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    dist.barrier()


def loaded(auto: str, path: Path) -> tuple[nn.Module, set[str]]:
    from transformers.distributed import DistributedConfig

    with as_torchrun():
        model, info = getattr(transformers, auto).from_pretrained(
            path, distributed_config=DistributedConfig(tp_plan="auto"), output_loading_info=True
        )
    assert sum(hasattr(p, "full_tensor") for p in model.parameters()) > 4
    return model, info["missing_keys"]


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


@pytest.mark.parametrize("name", MODELS)
@on_ranks(2)
def test_missing_shards_are_those_of_the_whole(name: str, tmp_path: Path) -> None:
    config = MODELS[name]()
    written(config, tmp_path, "layers.1.", "embed_tokens")
    plan, whole = planned(CAUSAL, config)
    torch.manual_seed(dist.get_rank())  # as in a job that seeds its ranks apart
    model, missing = loaded(CAUSAL, tmp_path)
    before = {n: full(p).clone() for n, p in model.named_parameters()}
    assert {n for n in before if "layers.1." in n or "embed_tokens" in n} == missing
    done = fill_missing_(model, missing, plan=plan)
    assert set(done.filled) == missing
    for each, parameter in model.named_parameters():
        kept = whole.get_parameter(each) if each in missing else before[each]
        assert torch.equal(full(parameter), kept), each


@on_ranks(2)
def test_a_head_that_transformers_draws_on_each_rank_is_one(tmp_path: Path) -> None:
    config = MODELS["llama"]()
    written(config, tmp_path)
    plan, whole = planned(HEAD, config)
    torch.manual_seed(dist.get_rank())
    model, missing = loaded(HEAD, tmp_path)
    fill_missing_(model, missing, plan=plan)
    assert torch.equal(full(model.score.weight), whole.score.weight)

    with deferred(seed=3):  # in one; what is not sharded is recorded
        again, _ = loaded(HEAD, tmp_path)
    fill_missing_(again)
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(full(one), full(other))


@on_ranks(2)
def test_shards_that_are_drawn_within_a_block_are_refused(tmp_path: Path) -> None:
    written(MODELS["llama"](), tmp_path, "layers.1.")
    with pytest.raises(DeferredError, match=r"normal_.* writes a tensor of .*DTensor"), deferred():
        loaded(CAUSAL, tmp_path)


def test_device_map_leaves_what_is_on_disk(tmp_path: Path) -> None:
    with deferred(seed=99):
        trained = transformers.AutoModelForCausalLM.from_config(MODELS["llama"]())
    materialize_(trained).save_pretrained(tmp_path)
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
    auto = transformers.AutoModelForSequenceClassification

    def placed(**more: str) -> tuple[nn.Module, set[str]]:
        model, info = auto.from_pretrained(
            tmp_path,
            num_labels=3,
            device_map={**places, **more},
            offload_folder=tmp_path / "disk",
            output_loading_info=True,
        )
        return model, info["missing_keys"]

    model, missing = placed(**{"model.layers": "disk", "score": "cpu"})
    plan, whole = planned(HEAD, model.config)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    done = fill_missing_(model, missing, plan=plan)
    assert done.filled == ["score.weight"]
    assert torch.equal(model.score.weight, whole.score.weight)
    whole.model.load_state_dict(trained.model.state_dict())
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, whole(ids).logits)

    model, missing = placed(**{"model.layers": "cpu", "score": "disk"})
    with pytest.raises(ValueError, match=r"offloaded by accelerate.*: tensor score\.weight"):
        fill_missing_(model, missing, plan=plan)
