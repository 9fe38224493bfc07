"""Small models of transformers, and checkpoints of them, for tests of what is loaded in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fastinit import deferred, materialize_

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0}
LLAMA = {**SMALL, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(**SMALL, n_positions=16, n_embd=8, n_layer=1, n_head=2),
    "llama": lambda: transformers.LlamaConfig(**LLAMA, **HEADS),
    "llama, tied": lambda: transformers.LlamaConfig(**LLAMA, **HEADS, tie_word_embeddings=True),
    "bert": lambda: transformers.BertConfig(**LLAMA, **HEADS),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity(before)


def language_model(name: str, seed: int = 0) -> nn.Module:
    auto = (
        transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    )
    with deferred(seed):
        return auto.from_config(CONFIGS[name]())


def saved(name: str, path: Path) -> nn.Module:
    """A checkpoint, as trained: with numbers of another seed."""
    model = materialize_(language_model(name, seed=99)).eval()
    model.save_pretrained(path)
    return model
