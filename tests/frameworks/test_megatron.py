"""Megatron-Core's own layers, over tensor, pipeline and expert parallelism, hold parts of one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

import fastinit
from fastinit import Fill, Plan

pytestmark = pytest.mark.frameworks


class Layout(NamedTuple):
    """Numbers of ranks."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    virtual: int | None = None


WHOLE = Layout()
LAYOUTS = [
    Layout(2, 2),
    Layout(4, 1),
    Layout(1, 4),
    Layout(1, 2, virtual=2),
]
EXPERT_LAYOUTS = [Layout(2, 1, 2), Layout(1, 2, 2), Layout(1, 1, 4), Layout(4, 1, 1)]

KINDS: dict[str, dict[str, Any]] = {
    "gated": {"gated": True},
    "plain, with biases": {"gated": False, "bias": True},
    "attention of groups": {"gated": True, "groups": 4},
}
EXPERT_KINDS: dict[str, dict[str, Any]] = {
    "gated": {"gated": True, "experts": 4},
    "plain": {"gated": False, "experts": 4},
}


@contextmanager
def layout(ranks: Layout) -> Iterator[None]:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        ranks.tensor,
        ranks.pipeline,
        ranks.virtual,
        expert_model_parallel_size=ranks.expert,
    )
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


def build(
    ranks: Layout,
    *,
    gated: bool = True,
    bias: bool = False,
    groups: int | None = None,
    experts: int | None = None,
    tied: bool = False,
    stage: int | None = None,
    vocabulary: int = 64,
    **options: Any,
) -> nn.Module:
    """What this rank has of a small GPT: of four layers, on the CPU."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        num_layers=4,
        hidden_size=16,
        num_attention_heads=8,
        num_query_groups=groups,
        ffn_hidden_size=24,
        use_cpu_initialization=True,
        gated_linear_unit=gated,
        activation_func=torch.nn.functional.silu,
        num_moe_experts=experts,
        add_bias_linear=bias,
        pipeline_dtype=torch.float32,
        tensor_model_parallel_size=ranks.tensor,
        pipeline_model_parallel_size=ranks.pipeline,
        virtual_pipeline_model_parallel_size=ranks.virtual,
        expert_model_parallel_size=ranks.expert,
        **options,
    )
    own: dict[str, Any] = {}
    if tied:  # where the constructor would copy the embedding from stage to stage, on a GPU
        own["pg_collection"] = ProcessGroupCollection.use_mpu_process_groups()
        own["pg_collection"].embd = None
    return GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=False),
        vocab_size=vocabulary,
        max_sequence_length=32,
        share_embeddings_and_output_weights=tied,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        vp_stage=stage,
        **own,
    )


def chunks(ranks: Layout, **options: Any) -> list[nn.Module]:
    """The model of this rank: of a virtual pipeline several."""
    stages = [None] if ranks.virtual is None else range(ranks.virtual)
    return [build(ranks, stage=stage, **options) for stage in stages]


def checkpoint(model: nn.Module) -> dict[str, Tensor]:
    """What Megatron would save of a model that is whole: full tensors by their keys."""
    full: dict[str, Tensor] = {}
    for said in model.sharded_state_dict().values():
        for its in [said] if not hasattr(said, "build") else said.build():
            if isinstance(its.data, Tensor):
                whole = full.setdefault(its.key, torch.full(its.global_shape, torch.nan))
                whole[its.global_slice()] = its.data.detach()
    return full


def loaded(model: nn.Module, full: dict[str, Tensor]) -> dict[str, Tensor]:
    """What Megatron would load of it, into this rank's model, with its own slices and merges."""
    found: dict[str, Tensor] = {}
    for name, said in model.sharded_state_dict().items():
        if hasattr(said, "build"):
            found[name] = said.merge_fn([full[its.key][its.global_slice()] for its in said.build()])
        elif isinstance(said.data, Tensor):
            found[name] = full[said.key][said.global_slice()]
    return found


def kinds_of(ranks: Layout) -> list[dict[str, Any]]:
    return [*(KINDS if ranks in LAYOUTS else EXPERT_KINDS).values()]


@pytest.mark.parametrize("ranks", [*LAYOUTS, *EXPERT_LAYOUTS], ids=str)
@on_ranks(4)
def test_parts_are_what_megatron_would_load(ranks: Layout) -> None:
    """Of the model that is whole, planned there, and as it is recorded on each rank."""
    from fastinit.frameworks import megatron

    wholes = []
    with layout(WHOLE):
        for options in kinds_of(ranks):
            model = build(WHOLE, **options)
            names = [name for name, _ in model.named_parameters()]
            fills = {name: Fill.normal(0.0, 1.0 + i) for i, name in enumerate(names)}
            plan = Plan(fills, seed=7)
            planned = checkpoint(plan.apply_(model))
            with fastinit.deferred(seed=8):
                model = build(WHOLE, **options)
            wholes.append((plan, planned, checkpoint(fastinit.materialize_(model))))
    with layout(ranks):
        for options, (plan, planned, recorded) in zip(kinds_of(ranks), wholes):
            with fastinit.deferred(seed=8):
                models = chunks(ranks, **options)
            for model in models:
                fastinit.materialize_(model, parts=megatron.parts(model))
                check(model, recorded)
                plan.apply_(model, parts=megatron.parts(model))
                check(model, planned)


def check(model: nn.Module, full: dict[str, Tensor]) -> None:
    expected = loaded(model, full)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("ranks", [Layout(2), Layout(4)], ids=str)
@on_ranks(4)
def test_parts_are_where_megatrons_constructor_puts_them(ranks: Layout) -> None:
    """Which draws the full weights on each rank, and keeps its share: here both draw alike."""
    from fastinit.frameworks import megatron

    kinds = (*KINDS.values(), *EXPERT_KINDS.values())
    wholes = []
    with layout(WHOLE):
        for options in kinds:
            torch.manual_seed(0)
            wholes.append(dict(build(WHOLE, **options).named_parameters()))
    with layout(ranks):
        for options, whole in zip(kinds, wholes):
            torch.manual_seed(0)
            model = build(ranks, **options)
            for name, part in megatron.parts(model).items():
                assert part.name == name
                assert part.shape == tuple(whole[name].shape)
                own = model.get_parameter(name)
                for piece in part.pieces(own.detach(), name):
                    assert torch.equal(piece.tensor, piece.which.on(whole[name].detach())), name


@on_ranks(4)
def test_a_tied_output_layer_has_the_embedding_of_another_stage() -> None:
    from fastinit.frameworks import megatron

    with layout(Layout(2, 2)):
        model = build(Layout(2, 2), tied=True)
        parts = megatron.parts(model)
        last = not hasattr(model, "embedding")
        name = "output_layer.weight" if last else "embedding.word_embeddings.weight"
        assert parts[name].name == "embedding.word_embeddings.weight"
        plan = Plan.from_model(model, lambda *_: Fill.normal(), parts=parts)
        plan.apply_(model, parts=parts)
        values = [torch.empty_like(model.get_parameter(name)) for _ in range(4)]
        torch.distributed.all_gather(values, model.get_parameter(name).detach())
        assert torch.equal(values[0], values[2])
        assert torch.equal(values[1], values[3])
        assert not torch.equal(values[0], values[1])


@on_ranks(2)
def test_rows_of_a_padded_vocabulary_have_the_same_numbers() -> None:
    from fastinit.frameworks import megatron

    with layout(Layout(2)):
        found = []
        for vocabulary in (64, 80):  # padded for other numbers of ranks
            model = build(Layout(2), vocabulary=vocabulary)
            parts = megatron.parts(model)
            plan = Plan.from_model(model, lambda *_: Fill.normal(), parts=parts)
            plan.apply_(model, parts=parts)
            rows = [torch.empty_like(model.embedding.word_embeddings.weight) for _ in range(2)]
            torch.distributed.all_gather(rows, model.embedding.word_embeddings.weight.detach())
            found.append(torch.cat(rows))
        assert torch.equal(found[0], found[1][:64])


@on_ranks(2)
def test_without_parts_the_line_that_works_is_named() -> None:
    from fastinit.frameworks import megatron

    with layout(Layout(2)):
        model = build(Layout(2))
        with pytest.raises(
            NotImplementedError, match=r"parts=fastinit\.frameworks\.megatron\.parts"
        ):
            Plan.from_model(model, lambda *_: Fill.normal())
        with pytest.raises(TypeError, match="Linear has no sharded_state_dict"):
            megatron.parts(nn.Linear(2, 2))
