"""Constructors that people use, small for tests and of published sizes for timings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

Constructor = Callable[[], nn.Module]


def constructors(small: bool) -> dict[str, Constructor]:
    """By name: models of transformers, modules of torch, and a Vision Transformer as timm writes it.

    Args:
        small: a few layers and narrow; otherwise with the defaults of their configurations.
    """
    return {**_transformers(small), **_torch(small)}


def llama(dtype: torch.dtype, layers: int = 22) -> Constructor:
    """Llama's shapes with TinyLlama's sizes: 1.1 billion parameters with 22 layers."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    return lambda: transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def _transformers(small: bool) -> dict[str, Constructor]:
    import transformers as t

    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "GPT-2": (t.GPT2Config, t.GPT2LMHeadModel, {"n_layer": 2, "n_embd": 64, "n_head": 4}),
        "Llama": (
            t.LlamaConfig,
            t.LlamaForCausalLM,
            {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 176},
        ),
        "Mixtral": (
            t.MixtralConfig,
            t.MixtralForCausalLM,
            {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4},
        ),
        "BERT": (
            t.BertConfig,
            t.BertForMaskedLM,
            {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
            | {"num_attention_heads": 4},
        ),
        "T5": (
            t.T5Config,
            t.T5ForConditionalGeneration,
            {"num_layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16},
        ),
        "ViT": (
            t.ViTConfig,
            t.ViTForImageClassification,
            {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
            | {"num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        ),
        "Whisper": (
            t.WhisperConfig,
            t.WhisperForConditionalGeneration,
            {"encoder_layers": 2, "decoder_layers": 2, "d_model": 64, "encoder_ffn_dim": 128}
            | {"decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        ),
        "Mamba": (t.MambaConfig, t.MambaForCausalLM, {"num_hidden_layers": 2, "hidden_size": 64}),
    }
    # By default these have 7 and 47 billion parameters.
    shallow = {
        "Llama": {"num_hidden_layers": 2},
        "Mixtral": {"num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 3584},
    }

    def constructor(name: str) -> Constructor:
        config, model, sizes = kinds[name]
        words = {} if name == "ViT" else tokens | {"vocab_size": 512}
        if name == "Whisper":
            words = words | {"decoder_start_token_id": 1}
        made = config(**sizes, **words) if small else config(**shallow.get(name, {}))
        return lambda: model(made)

    return {name: constructor(name) for name in kinds}


def _torch(small: bool) -> dict[str, Constructor]:
    width, heads, depth = (64, 4, 2) if small else (1024, 16, 6)
    return {
        "nn.Transformer": lambda: nn.Transformer(
            width, heads, depth, depth, 4 * width, batch_first=True
        ),
        "nn.LSTM": lambda: nn.LSTM(width, width, depth),
        "nn.MultiheadAttention": lambda: nn.MultiheadAttention(width, heads, kdim=width // 2),
        "ViT as in timm": lambda: VisionTransformer(width, heads, depth),
    }


class VisionTransformer(nn.Module):
    """As timm's: parameters from zeros and randn, trunc_normal_ imported by name, apply at the end."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)
        trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, c))
        out: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return out
