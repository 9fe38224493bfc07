"""torchtitan's models, parallelised by its own functions: values of the whole model, by its own laws."""

from __future__ import annotations

import math
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import nn

pytestmark = pytest.mark.frameworks
pytest.importorskip("torchtitan", reason="make frameworks")
import_module("torchtitan.trainer")  # here, as it changes sys.path

CPU = torch.device("cpu")
MODELS = {
    "llama3": "debugmodel",
    "deepseek_v3": "debugmodel",
    "gpt_oss": "debugmodel",
    "qwen3": "debugmodel",
}


def spec_of(model: str, *, tied: bool = False, **parallelism: Any) -> tuple[Any, Any]:
    """(the bundle of a model of torchtitan's registry, its parallelism)."""
    from torchtitan.config import ParallelismConfig, TrainingConfig

    given = ParallelismConfig(**{"spmd_backend": "partial_dtensor", **parallelism})
    spec = import_module(f"torchtitan.models.{model}").model_registry(MODELS[model])
    spec.model.tok_embeddings.num_embeddings = spec.model.lm_head.out_features = 512  # of 200,000
    del spec.model.layers[2:]  # one dense and one of experts, or one with each kind of attention
    if tied:
        spec.model.enable_weight_tying = True
    debug = SimpleNamespace(moe_force_load_balance=False)
    config = SimpleNamespace(parallelism=given, training=TrainingConfig(), debug=debug)
    spec.model.update_from_config(config=config)
    return spec, given


def built(spec: Any) -> Any:
    with torch.device("meta"):
        return spec.model.build()


def parallelized(spec: Any, given: Any, ranks: int, *, checkpointed: bool = False) -> Any:
    import torchtitan.distributed.parallel_dims as dims
    from torchtitan.config import CompileConfig, TrainingConfig
    from torchtitan.distributed.activation_checkpoint import FullAC

    dims.device_type = "cpu"  # "cuda", also where there is none
    parallel = dims.ParallelDims.from_config(given, ranks)
    parallel.build_mesh()
    return spec.parallelize_fn(
        built(spec),
        parallel_dims=parallel,
        training=TrainingConfig(),
        parallelism=given,
        compile_config=CompileConfig(enable=False),
        ac_config=FullAC.Config() if checkpointed else None,
        dump_folder="",
    )


def assert_same(model: nn.Module, of_whole: nn.Module) -> None:
    """All parameters and buffers, gathered, have the bits of those of the whole model."""
    expected = {
        **dict(of_whole.named_parameters(remove_duplicate=False)),
        **dict(of_whole.named_buffers()),
    }
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        clean = name.replace("_checkpoint_wrapped_module.", "")
        assert torch.equal(full, expected[clean]), name


@pytest.mark.parametrize("model", MODELS)
def test_laws_are_those_of_param_init_and_buffers_are_the_same(model: str) -> None:
    """Each standard deviation is within 5 standard errors of theirs: a level of 1e-4 in all."""
    from fastinit.frameworks import torchtitan

    spec, _ = spec_of(model)
    ours = torchtitan.init_states_(built(spec), 3, device="cpu")
    theirs = built(spec).to_empty(device="cpu")
    theirs.init_states()
    for (name, mine), (same, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == same
        mine, other = mine.detach().double(), other.detach().double()
        if other.min() == other.max():
            assert torch.equal(mine, other), name  # zeros, ones
            continue
        reach = 5 * math.sqrt(2 / (2 * (mine.numel() - 1)))
        assert abs(mine.std() / other.std() - 1) < reach, name
        assert abs(mine.mean()) < 5 * other.std() / math.sqrt(mine.numel()), name
    for (name, mine), (same, other) in zip(
        ours.named_buffers(), theirs.named_buffers(), strict=True
    ):
        assert name == same
        assert torch.equal(mine, other), name  # torch computed both, of the same numbers


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "FSDP": ("llama3", {}),
    "HSDP": ("llama3", {"data_parallel_replicate_degree": 2}),
    "FSDP and TP": ("llama3", {"tensor_parallel_degree": 2}),
    "FSDP and TP, all DTensors": (
        "llama3",
        {"tensor_parallel_degree": 2, "spmd_backend": "full_dtensor"},
    ),
    "tied": ("llama3", {"tensor_parallel_degree": 2, "tied": True}),
    "experts": ("deepseek_v3", {"expert_parallel_degree": 2}),
    "experts and TP, with counts that are sums": (
        "gpt_oss",
        {"tensor_parallel_degree": 2, "expert_parallel_degree": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
@on_ranks(4)
def test_parallelized_models_have_the_whole_models_values(case: str) -> None:
    from fastinit.frameworks import torchtitan

    model, options = CASES[case]
    spec, given = spec_of(model, **options)
    whole = torchtitan.init_states_(built(spec), 3, device="cpu")
    ours = parallelized(spec, given, 4, checkpointed=case == "FSDP and TP")
    torchtitan.init_states_(ours, 3, device="cpu")
    assert_same(ours, whole)
    assert (ours.tok_embeddings.weight is ours.lm_head.weight) == bool(options.get("tied"))
    ours.to_empty(device="cpu")
    with torchtitan.initialized(3):  # as the Trainer does it
        ours.init_weights(buffer_device=None)
    assert_same(ours, whole)


@on_ranks(2)
def test_plain_shards_of_spmd_types_are_refused() -> None:
    import torchtitan.distributed.parallel_dims as dims

    import fastinit
    from fastinit.frameworks import torchtitan

    spec, given = spec_of("llama3", spmd_backend="spmd_types", tensor_parallel_degree=2)
    dims.device_type = "cpu"
    parallel = dims.ParallelDims.from_config(given, 2)
    parallel.build_mesh()
    plan = torchtitan.plan(built(spec))
    model = built(spec)
    model.parallelize(parallel)
    said = "tok_embeddings.weight is one rank's part of a parameter that spmd_types has split"
    with pytest.raises(NotImplementedError, match=said):
        torchtitan.plan(model)
    with pytest.raises(NotImplementedError, match=said):
        plan.apply_(model, device="cpu")
    norm = model.layers["0"].attention_norm  # its weight has a type, and is whole
    assert fastinit.Plan.from_model(norm, lambda *_: fastinit.Fill.normal()).keys() == {"weight"}


def test_a_part_of_a_pipeline_has_the_values_of_the_whole() -> None:
    from fastinit.frameworks import torchtitan

    spec, _ = spec_of("llama3")
    last = built(spec)
    del last.layers["0"]
    last.tok_embeddings = None
    torchtitan.init_states_(last, 3, device="cpu")
    assert_same(last, torchtitan.init_states_(built(spec), 3, device="cpu"))


def test_failures_leave_the_model_as_it_was() -> None:
    from torchtitan.models.common.param_init import skip_param_init

    from fastinit.frameworks import torchtitan

    spec, _ = spec_of("llama3")
    spec.model.layers[1].ffn_norm.param_init = {"weight": skip_param_init}
    model = built(spec)
    with pytest.raises(ValueError, match=r"left unwritten.*layers\.1\.ffn_norm\.weight"):
        torchtitan.init_states_(model, device="cpu")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
