"""What others print while a command works: nothing with -q, and nothing on stdout with --json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import warm

pytest.importorskip("typer")

from fastinit.command import cli

NOISY = """\
import ctypes, logging, os, sys, warnings

from torch import nn

kept = logging.getLogger("noisy")
kept.addHandler(logging.StreamHandler(sys.__stdout__))
kept.addHandler(logging.StreamHandler())


def build():
    print("a print")
    print("to stderr", file=sys.stderr)
    warnings.warn("a warning")
    logging.getLogger("other").error("the last resort")
    kept.error("a handler's")
    os.write(1, b"a descriptor's\\n")
    os.write(2, b"a descriptor's\\n")
    os.system("echo a child\\\\'s; echo a child\\\\'s >&2")
    if sys.platform == "linux":
        ctypes.CDLL(None).puts(b"of C")
    return nn.Linear(4, 4)
"""
SAID = {"a print", "to stderr", "a warning", "the last resort", "a handler's", "a descriptor's"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "noisy_net.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process, whose descriptors are its own."""
    code = "import runpy; runpy.run_module('fastinit', run_name='__main__')"
    return warm.run(code, "init", "noisy_net:build", "--device", "cpu", *options)


def test_quiet_is_quiet_whoever_prints() -> None:
    done = program("-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stdout_is_json_whoever_prints() -> None:
    done = program("--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["model"] == "Linear"
    assert done.stdout.count("\n") == 1
    assert not [text for text in (*SAID, "a child's") if text not in done.stderr]


def test_an_error_shows_and_streams_are_as_they_were(capfd) -> None:
    before = sys.stdout, sys.stderr
    for options in (["-q"], ["--json"]):
        assert cli.main(["init", "noisy_net:nothing", *options]) == 2
        assert (sys.stdout, sys.stderr) == before
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("fastinit: noisy_net:nothing: AttributeError: ")
    sys.modules.pop("noisy_net")


def test_transformers_keeps_quiet(place: Path, capfd) -> None:
    """Its logger has a handler of its own, with the stderr of its import."""
    pytest.importorskip("transformers")
    Path("config.json").write_text(
        '{"model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_head": 2,'
        '"n_layer": 1}'  # its ids of tokens are beyond the vocabulary, of which it warns
    )
    for words in (["write", "--out", "out"], ["inspect", "--length", "8"], ["init"]):
        assert cli.main([words[0], "config.json", *words[1:], "-q"]) == 0
        assert capfd.readouterr() == ("", "")
