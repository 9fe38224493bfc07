"""A command that torchrun started several times: the processes share the work, and one speaks."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import pool

if not dist.is_available():
    pytest.skip("a torch without distributed", allow_module_level=True)

from fastinit.command.cli import main

CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 90,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def run(*words: str) -> tuple[int, str, str]:
    """As torchrun would: (exit status, what was said, what was said of errors)."""
    said = {
        "RANK": str(dist.get_rank()),
        "WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    os.environ.update(said)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    finally:
        for name in said:
            del os.environ[name]
    assert dist.is_initialized()
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def config(tmp_path) -> str:
    pytest.importorskip("transformers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ranks_write_together(config: str, tmp_path) -> None:
    words = ["write", config, "--shard-size", "20KB", "--seed", "3", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    (first, second) = pool(2).run(run, *words, str(tmp_path / "two"))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert second == (0, "", "")
    assert "GPT2LMHeadModel, float32, seed 3" in first[1]
    assert "shards" in first[1]
    first, second = pool(2).run(run, *words, str(tmp_path / "two"), "--dry-run")
    assert "nothing was written" in first[1]
    assert second == (0, "", "")
    (status, _, error), _ = pool(2).run(run, *words[:-2], "4", "--out", str(tmp_path / "two"))
    assert (status, "written with seed 3, not 4; --overwrite" in error) == (2, True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_ranks_write_for_dcp(config: str, tmp_path) -> None:
    import torch.distributed.checkpoint as dcp
    import transformers

    from fastinit.command import models
    from fastinit.record.materialize import materialize_

    out = str(tmp_path / "dcp")
    (status, said, _), second = pool(2).run(run, "write", config, "--out", out, "--format", "dcp")
    assert (status, second) == (0, (0, "", ""))
    assert "2 files and .metadata" in said
    made = materialize_(models.from_config(transformers.GPT2Config(**CONFIG), torch.float32, 0))
    state = {name: torch.zeros_like(value) for name, value in made.state_dict().items()}
    dcp.load(state, checkpoint_id=out, no_dist=True)
    assert all(torch.equal(state[name], value) for name, value in made.state_dict().items())
    assert main(["write", config, "--out", out, "--format", "dcp", "--verify"]) == 2
