"""Recipes: named rules from (name, module, parameter) to a Fill, each with its source.

A rule returns None for what it does not know, and ``Plan.from_model`` then lists it as an error: a
recipe is applied in full or not at all.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fastinit import fans
from fastinit.fill import Fill
from fastinit.plan import Rule

# Decoders of transformers that leave PreTrainedModel._init_weights as it is.
_PLAIN_FAMILIES = frozenset({"llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,  # InstanceNorm among them
)


def transformers_default(config: Any) -> Rule:
    """What transformers gives a new model of the Llama and GPT-2 families.

    Linear, Conv1D and Embedding weights: normal(0, ``initializer_range``); biases 0; norms weight 1,
    bias 0. GPT-2: the ``c_proj`` weights that end a residual branch have the std
    ``initializer_range / sqrt(2 * n_layer)`` (Radford et al. 2019, section 2.3).

    Source: transformers 5, ``PreTrainedModel._init_weights`` (modeling_utils.py) and
    ``GPT2PreTrainedModel._init_weights`` (models/gpt2/modeling_gpt2.py).

    Args:
        config: a transformers configuration (``model_type``, ``initializer_range``, ``n_layer``).

    Raises:
        ValueError: a family that this rule does not know.
        NotImplementedError: from the rule, for an embedding with a ``padding_idx`` (which a
            ``pad_token_id`` sets): transformers zeroes that row, which a Fill cannot say.
    """
    family = config.model_type
    if family != "gpt2" and family not in _PLAIN_FAMILIES:
        known = ", ".join(sorted({"gpt2", *_PLAIN_FAMILIES}))
        raise ValueError(f"model_type {family!r} has no recipe yet; there is one for {known}")
    # Not 0 even if the configuration says so: transformers reads a falsy value as unset.
    std = config.initializer_range or 0.02
    residual_std = std / math.sqrt(2 * config.n_layer) if family == "gpt2" else std

    def rule(name: str, module: nn.Module, parameter: nn.Parameter) -> Fill | None:
        kind = type(module).__name__
        own_name = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding):
            return _embedding(name, module, Fill.normal(0.0, std))
        if isinstance(module, nn.Linear) or kind == "Conv1D":
            if own_name == "bias":
                return Fill.constant(0.0)
            residual = family == "gpt2" and name.endswith(".c_proj.weight")
            return Fill.normal(0.0, residual_std if residual else std)
        if "LayerNorm" in kind or "RMSNorm" in kind:
            return {"weight": Fill.constant(1.0), "bias": Fill.constant(0.0)}.get(own_name)
        return None

    return rule


def torch_default(name: str, module: nn.Module, parameter: nn.Parameter) -> Fill | None:
    """What the modules of ``torch.nn`` give their parameters in ``reset_parameters``.

    Linear and convolutions: uniform within 1 / sqrt(fan_in), written as kaiming_uniform with
    a = sqrt(5); Bilinear, RNN, LSTM, GRU and their cells: uniform within 1 / sqrt(size);
    MultiheadAttention: Xavier, biases 0; embeddings: normal(0, 1); norms: weight 1, bias 0; PReLU: its
    constant. A container that afterwards initialises its parts anew (``nn.Transformer``) is not
    heeded. This is itself a rule: ``Plan.from_model(model, torch_default)``.

    Source: torch 2.13, ``torch/nn/modules``.

    Raises:
        NotImplementedError: an embedding with a ``padding_idx``, whose row torch zeroes.
    """
    own_name = name.rpartition(".")[2]
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and own_name == "bias":
        return Fill.constant(0.0)  # MultiheadAttention.out_proj
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        fan_in, fan_out = fans.fans_of(module.weight.shape)
        if own_name == "bias":
            return _within(1.0 / math.sqrt(fan_in) if fan_in else 0.0)
        std = fans.kaiming_std((fan_in, fan_out), a=math.sqrt(5.0))
        return _within(math.sqrt(3.0) * std)
    if isinstance(module, nn.Bilinear):
        return _within(1.0 / math.sqrt(module.weight.shape[1]))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _within(1.0 / math.sqrt(module.hidden_size) if module.hidden_size else 0.0)
    if isinstance(module, nn.MultiheadAttention):
        if own_name == "in_proj_bias":
            return Fill.constant(0.0)
        std = fans.xavier_std(fans.fans_of(parameter.shape))
        return Fill.normal(0.0, std) if "bias" in own_name else _within(math.sqrt(3.0) * std)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return _embedding(name, module, Fill.normal(0.0, 1.0))
    if isinstance(module, _NORMS):
        return Fill.constant(0.0 if own_name == "bias" else 1.0)
    if isinstance(module, nn.PReLU):
        return Fill.constant(module.init)
    return None


def _within(bound: float) -> Fill:
    return Fill.uniform(-bound, bound)


def _embedding(name: str, module: nn.Embedding | nn.EmbeddingBag, fill: Fill) -> Fill:
    if module.padding_idx is not None:
        raise NotImplementedError(
            f"{name} has padding_idx={module.padding_idx} (in a configuration: pad_token_id), a row "
            f"of zeros that a plan cannot describe yet; build the model without it"
        )
    return fill
