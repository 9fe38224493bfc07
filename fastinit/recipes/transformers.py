"""What transformers gives its models, and the schemes of GPT-2 and GPT-NeoX for others too.

Nothing here imports transformers: modules are known by torch's classes and by the names of others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastinit.fills.layer_kinds import is_conv1d
from fastinit.plan.fill import Fill
from fastinit.plan.ruled import Rule
from fastinit.recipes.fills import ZERO, normal
from fastinit.recipes.pretrained import plain, std_of
from fastinit.recipes.roles import by_role, own_name, role
from fastinit.recipes.rules import count_of, needs, number_of, setting
from fastinit.recipes.state_space import FAMILIES as STATE_SPACE


def llama(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """Llama, and every model of transformers that leaves ``_init_weights`` as it is.

    Weights of Linear, convolutions and Embedding: normal(0, ``initializer_range``), a padding row 0;
    biases 0; norms weight 1, bias 0; LSTM: Xavier uniform; MultiheadAttention: torch's.

    Source: transformers 5, ``PreTrainedModel._init_weights`` (modeling_utils.py).

    Args:
        config: ``initializer_range``, by default 0.02, also if it is 0; other names that transformers
            looks for are ``init_std`` and ``initializer_factor``.
    """
    return plain(name, module, shape, std_of(config))


def gemma(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """Gemma: as :func:`llama`, but norms 0, since they multiply by 1 + weight.

    Source: transformers 5, ``GemmaPreTrainedModel._init_weights``; Gemma 2 and 3 are alike.

    Args:
        config: as of :func:`llama`.
    """
    if "RMSNorm" in type(module).__name__ and own_name(name) == "weight":
        return ZERO
    return plain(name, module, shape, std_of(config))


@needs("*c_proj.weight")
def gpt2(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """GPT-2: weights that end a residual branch, ``c_proj``, have a std less by sqrt(2 layers).

    The others are normal(0, ``initializer_range``), biases 0, norms weight 1, bias 0. The paper says
    1 / sqrt(N) for N residual layers; there are two in each block (Radford et al. 2019, section 2.3).

    Source: transformers 5, ``GPT2PreTrainedModel._init_weights``; nanoGPT's model.py does the same.

    Args:
        config: ``n_layer`` (or ``num_hidden_layers``) and ``initializer_range``, by default 0.02.
    """
    std = number_of(config, "initializer_range", default=0.02)
    if name.endswith("c_proj.weight") and role(name, module, shape) == "weight":
        return normal(std / math.sqrt(2 * count_of(config, "n_layer", "num_hidden_layers")))
    if is_conv1d(module):  # transformers' Linear with the weight transposed
        return by_role(role(name, module, shape), weight=normal(std))
    return plain(name, module, shape, std_of(config))


@needs("*dense_4h_to_h.weight")
def neox(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """GPT-NeoX-20B as it was trained: depth-scaled residuals ("wang_init"), else "small_init".

    Weights that end a branch (``attention.dense``, ``mlp.dense_4h_to_h``): std 2 / (layers sqrt(d));
    all others sqrt(2 / (5 d)), of Nguyen & Salazar 2019; biases 0, norms weight 1, bias 0.
    transformers gives a new GPTNeoX model something else, its default: see
    :func:`transformers_default`.

    Source: EleutherAI/gpt-neox, ``configs/20B.yml`` and ``megatron/model/init_functions.py``; Black et
    al. 2022, arXiv 2204.06745, "Initialization", which names the feed-forward part's output alone.

    Args:
        config: ``num_hidden_layers`` (or ``num_layers``) and ``hidden_size``.
    """
    size = count_of(config, "hidden_size")
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        layers = count_of(config, "num_hidden_layers", "num_layers")
        return normal(2 / layers / math.sqrt(size))
    return plain(name, module, shape, math.sqrt(2 / (5 * size)))


def bert(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """BERT: as :func:`llama`, and the bias of its prediction head 0.

    Google's own code cuts the normals at two standard deviations (``create_initializer``).

    Source: transformers 5, ``BertPreTrainedModel._init_weights``; RoBERTa's is alike.

    Args:
        config: as of :func:`llama`.
    """
    kind = type(module).__name__
    if own_name(name) == "bias" and kind.endswith(("LMPredictionHead", "LMHead")):
        return ZERO
    return plain(name, module, shape, std_of(config))


def t5(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """T5: normal with a std from each matrix's inputs, since its attention does not divide by sqrt(d).

    q: (d_model d_kv)^-1/2; k, v, wi and the relative attention bias: d_model^-1/2; o: (heads d_kv)^-1/2;
    wo: d_ff^-1/2; embeddings and an untied lm_head: 1; norms 1; all times ``initializer_factor``.

    Source: transformers 5, ``T5PreTrainedModel._init_weights`` (after Mesh TensorFlow); mT5's is alike.

    Args:
        config: ``d_model``, ``d_kv``, ``d_ff``, ``num_heads`` and ``initializer_factor``, by default 1.
    """
    factor = number_of(config, "initializer_factor", default=1.0)
    if type(module).__name__.endswith("LayerNorm"):
        return Fill.constant(factor) if own_name(name) == "weight" else None
    if not isinstance(module, (nn.Linear, nn.Embedding)):
        return None
    part = role(name, module, shape)
    if part != "weight":
        return ZERO if part == "bias" else None
    layer = name.split(".")[-2] if "." in name else ""
    if layer in ("shared", "embed_tokens", "lm_head", "classifier"):
        return normal(factor)
    if layer == "q":
        size = count_of(config, "d_model") * count_of(config, "d_kv")
    elif layer == "o":
        size = count_of(config, "num_heads") * count_of(config, "d_kv")
    elif layer == "wo":
        size = count_of(config, "d_ff")
    elif layer in _T5_FROM_MODEL:
        size = count_of(config, "d_model")
    else:
        return None
    return normal(factor * size**-0.5)


_T5_FROM_MODEL = frozenset(
    {"k", "v", "wi", "wi_0", "wi_1", "relative_attention_bias", "qa_outputs", "dense", "out_proj"}
)


def transformers_vit(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """transformers' ViT: as :func:`llama`, class token and positions cut off at 2; the mask token 0.

    (timm's is another: :func:`fastinit.recipes.vit`.)

    Source: transformers 5, ``ViTPreTrainedModel._init_weights``.

    Args:
        config: ``initializer_range``.
    """
    own = own_name(name)
    if own in ("position_embeddings", "cls_token"):
        return Fill.truncated_normal(0.0, number_of(config, "initializer_range"), -2.0, 2.0)
    if own == "mask_token":
        return ZERO
    return plain(name, module, shape, std_of(config))


_LIKE_LLAMA = (
    "arcee",
    "cohere",
    "ernie4_5",
    "exaone4",
    "glm",
    "glm4",
    "gpt_neox",
    "granite",
    "helium",
    "llama",
    "ministral",
    "mistral",
    "olmo",
    "olmo2",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)

FAMILIES: dict[str, Rule] = {
    **dict.fromkeys(_LIKE_LLAMA, llama),
    "bert": bert,
    "gemma": gemma,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "gpt2": gpt2,
    "mt5": t5,
    "roberta": bert,
    "t5": t5,
    "vit": transformers_vit,
    **STATE_SPACE,
}
"""The rule of each ``model_type`` of transformers that has one."""


def transformers_default(
    name: str, module: nn.Module, shape: torch.Size, config: Any
) -> Fill | None:
    """What transformers gives a new model: the rule of its ``config.model_type`` (:data:`FAMILIES`).

    Source: that of the family's rule.

    Args:
        config: ``model_type``, and what the family's rule reads.

    Raises:
        ValueError: a family that has no rule.
    """
    return transformers_family(config)(name, module, shape, config)


def transformers_family(config: Any) -> Rule:
    """The rule of a configuration's ``model_type``.

    Raises:
        ValueError: there is none.
    """
    family = setting(config, "model_type")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"model_type {family!r} has no recipe yet; there is one for {known}")
    return FAMILIES[family]
