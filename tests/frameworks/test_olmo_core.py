"""OLMo-core's models, parallelised by its own functions: values of the whole model, by its own laws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

pytestmark = pytest.mark.frameworks
pytest.importorskip("olmo_core", reason="make frameworks")
import_module("olmo_core.train.train_module.transformer.common")  # here, as it changes sys.path

METHODS = ("normal", "normalized", "llama", "llama_depth", "fan_in")


def config(kind: str = "dense", method: str = "llama_depth", **options: Any) -> Any:
    from olmo_core.nn.attention import AttentionConfig
    from olmo_core.nn.transformer import InitMethod, TransformerConfig

    sizes: dict[str, Any] = {"d_model": 48, "vocab_size": 96, "n_layers": 2, "n_heads": 4}
    if kind == "ngpt":
        return TransformerConfig.ngpt_like(**sizes)
    if kind == "moe":
        experts = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 32, "dropless": False}
        made = TransformerConfig.llama_like_moe(**sizes, **experts)
    else:
        made = TransformerConfig.llama_like(**sizes, qk_norm=True, n_kv_heads=2)
    assert isinstance(made.block.sequence_mixer, AttentionConfig)
    made.init_method = InitMethod(method)
    for name, value in options.items():
        setattr(made, name, value)
    return made


def built(kind: str = "dense", method: str = "llama_depth", **options: Any) -> Any:
    return config(kind, method, **options).build(init_device="meta")


def whole(kind: str = "dense", method: str = "llama_depth", **options: Any) -> Any:
    from fastinit.frameworks import olmo_core

    return olmo_core.init_weights_(built(kind, method, **options), 3, device="cpu")


def assert_same(model: nn.Module, of_whole: nn.Module) -> None:
    """All parameters and buffers, gathered, have the bits of those of the whole model."""
    expected = {**dict(of_whole.named_parameters()), **dict(of_whole.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        clean = name.replace("_checkpoint_wrapped_module.", "")
        assert torch.equal(full, expected[clean]), name


def values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_laws_are_those_of_the_models_own_method(kind: str, method: str) -> None:
    """Each mean and standard deviation is within 5 standard errors of theirs: a level of 1e-4 in all."""
    ours, theirs = whole(kind, method), built(kind, method)
    theirs.init_weights(device=torch.device("cpu"))
    drawn = 0
    for (name, mine), (same, other) in zip(values(ours), values(theirs), strict=True):
        assert name == same
        if other.min() == other.max():
            assert torch.equal(mine, other), name  # zeros, ones
            continue
        drawn += 1
        # Both are estimates; a truncated normal's fourth moment is below the normal's.
        reach = 5 * math.sqrt(2 / (2 * (mine.numel() - 1)))
        assert abs(mine.std() / other.std() - 1) < reach, name
        assert abs(mine.mean()) < 5 * other.std() / math.sqrt(mine.numel()), name
        if "embeddings" not in name or method == "normal":
            std = float(other.std()) / 0.98658  # of a normal that is cut at 3 standard deviations
            assert mine.abs().max() < 3 * std * (1 + reach), name
    assert drawn == (16 if kind == "dense" else 18)


def test_what_is_computed_from_parameters_is() -> None:
    """nGPT normalises each matrix, and so does the plan's."""
    model = whole("ngpt")
    for name, value in values(model):
        if name.endswith(("embeddings.weight", "w_q.weight", "w1.weight")):
            norms = value.norm(dim=-1)
            torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


CASES = {
    "FSDP": ("dense", {"dp": "fsdp"}),
    "HSDP": ("dense", {"dp": "hsdp", "replicas": 2}),
    "DDP": ("dense", {"dp": "ddp"}),
    "TP": ("dense", {"dp": "ddp", "tp": 4}),
    "FSDP and TP": ("dense", {"dp": "fsdp", "tp": 2}),
    "experts and HSDP": ("moe", {"dp": "hsdp", "replicas": 2, "ep": 2}),
    "nGPT, FSDP": ("ngpt", {"dp": "fsdp"}),
    "activations checkpointed": ("dense", {"dp": "fsdp", "checkpointed": True}),
}


def parallelized(model: Any, split: dict[str, Any]) -> Any:
    """By OLMo-core's own function, which calls ``init_weights`` at the end."""
    import olmo_core.distributed.parallel as parallel
    from olmo_core.train.train_module.transformer import config as configs
    from olmo_core.train.train_module.transformer.common import parallelize_model

    given: dict[str, Any] = {}
    if "dp" in split:
        name = parallel.DataParallelType(split["dp"])
        given["dp_config"] = configs.TransformerDataParallelConfig(
            name=name, num_replicas=split.get("replicas")
        )
    if "tp" in split:
        given["tp_config"] = configs.TransformerTensorParallelConfig(degree=split["tp"])
    if "ep" in split:
        given["ep_config"] = configs.TransformerExpertParallelConfig(degree=split["ep"])
    parallel._WORLD_MESH = None  # it wants to be the only one of a process
    mesh = parallel.build_world_mesh(
        **{key: given.get(f"{key}_config") for key in ("dp", "tp", "ep")}, device_type="cpu"
    )
    if split.get("checkpointed"):
        given["ac_config"] = configs.TransformerActivationCheckpointingConfig()
    sizes = {"max_sequence_length": 16, "rank_microbatch_size": 32}
    return parallelize_model(model, world_mesh=mesh, device=torch.device("cpu"), **sizes, **given)


@pytest.mark.parametrize("case", CASES)
@on_ranks(4)
def test_parallelized_models_have_the_whole_models_values(case: str) -> None:
    from fastinit.frameworks import olmo_core

    kind, split = CASES[case]
    with olmo_core.initialized(seed=3):
        model = parallelized(built(kind), split)
    expected = whole(kind)
    assert_same(model, expected)
    attention = model.blocks["1"].attention
    assert attention.rope is None or attention.rope._cache["rope_pos_sin"].shape[-2] == 16
    assert olmo_core.plan(model, 3).seed == 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(olmo_core.init_weights_(model, 3), expected)  # what has memory is written there


@on_ranks(2)
def test_tied_embeddings_are_tied_after_tensor_parallelism_too() -> None:
    from fastinit.frameworks import olmo_core

    with olmo_core.initialized(seed=3):
        model = parallelized(built(tie_word_embeddings=True), {"dp": "fsdp", "tp": 2})
    assert model.lm_head.w_out.weight is model.embeddings.weight
    assert_same(model, whole(tie_word_embeddings=True))


def test_a_part_of_a_pipeline_has_the_values_of_the_whole() -> None:
    from fastinit.frameworks import olmo_core

    last = built()
    del last.blocks["0"]
    last.embeddings = None
    assert_same(olmo_core.init_weights_(last, 3, device="cpu"), whole())


def test_the_seed_is_the_models() -> None:
    from fastinit.frameworks import olmo_core

    assert olmo_core.plan(built(init_seed=12)).seed == 12
    assert olmo_core.plan(built()) == olmo_core.plan(built())


def test_outside_the_block_init_weights_is_the_models_own() -> None:
    from olmo_core.nn.transformer import Transformer
    from olmo_core.nn.transformer.model import NormalizedTransformer

    from fastinit.frameworks import olmo_core

    own = Transformer.init_weights, NormalizedTransformer.init_weights
    with olmo_core.initialized():
        assert Transformer.init_weights is not own[0]
    assert own == (Transformer.init_weights, NormalizedTransformer.init_weights)


def test_failures_leave_the_model_as_it_was() -> None:
    from fastinit.frameworks import olmo_core

    model = built()
    model.further = nn.Parameter(torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match=r"left unwritten.*further"):
        olmo_core.init_weights_(model, device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
