"""A model of all that a checkpoint may hold, families of transformers, and what is in their files."""

from pathlib import Path

import pytest
import torch
import warm
from torch import nn

from fastinit import deferred
from fastinit.checkpoint import disk as stream_file
from fastinit.checkpoint import writing as checkpoint

safetensors = pytest.importorskip("safetensors.torch")

SEED = 7


class Net(nn.Module):
    """A tied weight, a padding row, a structure, given values, buffers, layouts and odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 24, padding_idx=3)
        self.body = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        nn.init.orthogonal_(self.body[1].weight)
        with torch.no_grad():  # every other column
            nn.init.normal_(self.body[2].weight[:, ::2], std=3.0)
        self.norm = nn.BatchNorm1d(24)
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 7))
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.head = nn.Linear(24, 101, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a block, so that small files have many."""
    monkeypatch.setattr(stream_file, "CHUNK", 4096)
    monkeypatch.setattr(checkpoint, "CHUNK", 4096)


def recorded(make=Net, seed: int = SEED) -> nn.Module:
    with deferred(seed):
        return make()


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found.update(safetensors.load_file(path))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 90},
    "llama": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "bert": {"architectures": ["BertForMaskedLM"]},
    "mamba": {"state_size": 4},
    "vit": {"image_size": 16, "patch_size": 4},
}
SHAPES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def family(name: str) -> nn.Module:
    from fastinit.command import models

    transformers = pytest.importorskip("transformers")
    fields = {**({} if name in ("gpt2", "t5") else SHAPES), **FAMILIES[name]}
    config = transformers.CONFIG_MAPPING[name].from_dict({"model_type": name, **fields})
    return models.from_config(config, torch.bfloat16, SEED)


def run(code: str, *arguments: object) -> str:
    done = warm.run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
