"""The sweep over a few models of what the tests have: kinds of constructors that were recorded wrong."""

from __future__ import annotations

import pytest

from sweep.examine import examine
from sweep.report import WIDTH, progress, summary

pytest.importorskip("transformers")
from sweep import of_transformers

CASES = of_transformers.cases()
SAMPLE = (
    "clip",  # random tensors that become parameters
    "detr",  # writes buffers only if a weight isn't on meta
    "llama",
    "mamba",  # logarithms of what it draws
    "mixtral",  # parameters of all experts in one tensor
    "rwkv",  # tensors made of lists
    "t5",  # tied embeddings
    "wav2vec2",  # a parametrization
)


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_model_is_as_it_is_eagerly(kind: str) -> None:
    result = examine(CASES[kind])
    assert result is not None
    assert result["outcome"] == "agrees", result.get("why")
    assert result["checks"]["plan"] == "holds"


def test_the_table_fits_a_terminal_and_counts_each_outcome_once() -> None:
    outcomes = ("agrees", "differs", "raises", "skipped")
    results = {
        ("segmentation_models_pytorch", f"model {i}"): {
            "outcome": outcomes[i % 4],
            "checks": dict.fromkeys(("lsuv", "plan", "saves"), "holds"),
        }
        for i in range(4444)
    }
    lines = summary({"segmentation_models_pytorch": "10.11.12", "peft": None}, results).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].split() == ["all", "4444", *["1111"] * 4, *["4444"] * 3]
    key = ("segmentation_models_pytorch", "a model " * 50)
    assert (
        len(progress(9999, 9999, key, {"outcome": "skipped", "why": "so " * 99}, 9e4)) <= 2 * WIDTH
    )
