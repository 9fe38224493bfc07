"""``coord-check`` as a user sees it: a table of 80 columns, a picture, a status for each outcome."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("transformers")

from fastinit.command import cli, models

NET = """
from torch import nn
def build(width):
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 4))
def fails(width):
    raise KeyError(width)
def one(width):
    return width
"""
LLAMA = {
    "model_type": "llama",
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
SHAPE = ["--shape", "16x8"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory with a net and a configuration."""
    (tmp_path / "coord_net.py").write_text(NET)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_net_that_fails_and_one_that_passes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["coord-check", "coord_net:build", "--widths", "256,64,128", *SHAPE]
    assert cli.main([*asked, "--out", "coord.png"]) == 3
    said = capsys.readouterr().out
    assert "Sequential, float32, adam, normal input, 16 x 8" in said
    assert "at 64, 128, 256, 3 seeds" in " ".join(said.split())
    assert said.splitlines()[-1] == "3 layers: 1 flat, 2 grows"
    assert max(map(len, said.splitlines())) <= 80
    assert Path("coord.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*asked, "--mup"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all 3 layers flat"
    more = ["--plan", "torch_default", "--norm", "l1", "--seeds", "2", "--steps", "3"]
    assert cli.main([*asked, "--mup", *more, "--optimizer", "sgd", "--lr", "0.05"]) in (0, 3)
    said = capsys.readouterr().out
    assert "sgd" in said
    assert "step 2" in said
    assert "mean absolute value against log2 width, at 64, 128, 256, 2" in " ".join(said.split())


def test_a_transformers_config(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["coord-check", "config.json", "--widths", "32,64,128", "--length", "16", "--mup"]
    assert cli.main([*asked, "--seeds", "2"]) in (0, 3)
    said = capsys.readouterr().out
    assert "LlamaForCausalLM, float32, adam, 1 x 16 random tokens" in said
    hidden = [line for line in said.splitlines() if "_proj" in line]
    assert len(hidden) == 7
    assert all(line.endswith("flat") for line in hidden)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_wider_config_has_more_heads_of_one_size(family: str) -> None:
    if family == "gpt2":
        fields = {"vocab_size": 90, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4}
        Path("config.json").write_text(json.dumps({"model_type": "gpt2", **fields}))
    build = models.by_width("config.json")
    narrow, wide = build(16), build(96)
    assert [m.config.hidden_size for m in (narrow, wide)] == [16, 96]
    assert [m.config.num_attention_heads for m in (narrow, wide)] == [2, 12]
    heads = [p.shape for name, p in wide.named_parameters() if "k_proj.weight" in name]
    assert heads == ([torch.Size([48, 96])] if family == "llama" else [])
    assert models.load_config("config.json").hidden_size == 32  # as it was


BAD: list[tuple[list[str], str]] = [
    (["coord_net:build", "--widths", "64", *SHAPE], "--widths must be two or more, as in"),
    (["coord_net:build", "--widths", "64,", *SHAPE], "--widths must be two or more, as in"),
    (["coord_net:build", "--widths", "64,128,64", *SHAPE], "must each be there once"),
    (["coord_net:build", "--widths", "64,0", *SHAPE], "--widths must be two or more"),
    (["coord_net:build", "--widths", "4,8", *SHAPE, "--seeds", "1"], "seeds must be at least 2"),
    (["coord_net:build", "--widths", "4,8", *SHAPE, "--steps", "1"], "--steps"),
    (["coord_net:build", "--widths", "4,8", *SHAPE, "--lr", "-1"], "--lr must be positive"),
    (["coord_net:build", "--widths", "4,8", *SHAPE, "--out", "coord.doc"], "--out coord.doc must"),
    (["coord_net:build", "--widths", "4,8", *SHAPE, "--plan", "none"], "--plan 'none' is no file"),
    (["coord_net:build", "--widths", "4,8"], "takes no tokens: say what it takes, as --shape"),
    (["coord_net:build", "--widths", "4,8", "--shape", "3x3"], "does not train on normal input"),
    (["coord_net:fails", "--widths", "4,8", *SHAPE], "coord_net:fails at width 4: KeyError: 4"),
    (["coord_net:one", "--widths", "4,8", *SHAPE], "must return a torch.nn.Module, but got int"),
    (["coord_net:none", "--widths", "4,8", *SHAPE], "has no attribute 'none'"),
    (["config.json", "--widths", "32,60"], "num_attention_heads is 4, of which that is no whole"),
    (["nowhere.json", "--widths", "32,64"], "model 'nowhere.json' is no file"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_said_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dtype: Any = torch.get_default_dtype()
    assert cli.main(["coord-check", *arguments]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastinit:")]
    assert len(told) == 1
    assert said in told[0]
    assert torch.get_default_dtype() == dtype
    assert os.listdir()
    assert "coord.doc" not in os.listdir()
