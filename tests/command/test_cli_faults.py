"""What a user can get wrong on a command line ends in one line which says what, before any work.

A table of commands × options × values that are no good. Each row runs in this process; what only a
process has (a full device, a closed pipe, a terminal that is none) runs in one.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

from fastinit.__main__ import main
from fastinit.command import faults, models

pytest.importorskip("numpy")
pytest.importorskip("typer")

import numpy as np
import typer

from fastinit.command import cli

NET = """\
import sys

import torch
from torch import nn


def good():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def wide(width):
    return nn.Linear(8, width)


def int8():
    net = nn.Linear(8, 4)
    net.codes = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    return net


def fails():
    return deep()


def deep():
    return {}["no such key"]  # line 26


def exits():
    sys.exit("goodbye")


def reads():
    return nn.Linear(3, int(nn.Linear(3, 3).weight.sum() > 0) + 1)  # line 34


def text():
    return "net"


def frozen():
    return nn.Linear(8, 4).requires_grad_(False)


def bare():
    return nn.Identity()


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x):
        return self.table(x.long() + 50) if x.dim() == 2 else self.half(x)

    def half(self, x):
        raise ArithmeticError("of my own")  # line 58


class Numberless(nn.Linear):
    def forward(self, x):
        return str(x)


def numberless():
    return Numberless(8, 4)


def lazy():
    return nn.LazyLinear(4)


made = nn.Linear(8, 4)
"""
COMMANDS = ("init", "inspect", "write")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with files of all kinds, which is the current one."""
    (tmp_path / "some_nets.py").write_text(NET)
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n\ndef good(): ...\n")
    (tmp_path / "broken.py").write_text("def good(:\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("of mine")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    np.save(tmp_path / "tokens.npy", np.zeros((2, 17), int))
    np.save(tmp_path / "x.npy", np.zeros((4, 8)))
    np.save(tmp_path / "large.npy", np.full((4, 8), 1e300))
    (tmp_path / "bom.json").write_text("{}", encoding="utf-8-sig")
    for name, content in {
        "no-json": "{",
        "list": "[]",
        "deep": "[" * 100_000,
        "no-type": "{}",
        "unknown": '{"model_type": "nope"}',
        "type-is-a-list": '{"model_type": ["llama"]}',
        "plan-of-another": '{"format": "fastinit.plan", "version": 9}',
        "negative": '{"model_type": "gpt2", "n_embd": -8, "n_head": 2}',
        "no-heads": '{"model_type": "gpt2", "n_embd": 8, "n_head": 0}',
        "gpt2": '{"model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_head": 2,'
        '"n_layer": 1, "bos_token_id": null, "eos_token_id": null}',
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    for module in ("some_nets", "needs_more", "broken"):
        sys.modules.pop(module, None)


GOOD = "some_nets:good"
# (arguments behind the command and the model, what the line says); for init, inspect and write alike.
OF_ALL = [
    ("--seed -1", "seed must be in [0, 2**64)"),
    (f"--seed {2**64}", "seed must be in [0, 2**64)"),
    ("--seed nan", "--seed"),
    ("--seed 1.5", "--seed"),
    ("--dtype int8", "Invalid value for '--dtype': 'int8' is not one of 'float32', "),
    ("--dtype float99", "--dtype"),
    ("--threads 0", "--threads"),
    ("--threads -3", "--threads"),
    ("--threads nan", "--threads"),
    (f"--threads {2**40}", "--threads"),
    ("--plan nope", "--plan 'nope' is no file, and no recipe: those are torch_default"),
    ("--plan empty", "--plan empty is a directory, but must be a file"),
    ("--plan /no/such/plan.json", "--plan '/no/such/plan.json' is no file"),
    ("--plan no-json.json", "no-json.json: not a plan: not JSON"),
    ("--plan list.json", "list.json: not a plan"),
    ("--plan binary", "binary: not a plan: not text in UTF-8"),
    ("--plan bom.json", 'bom.json: not a plan: "format" is not'),
    ("--plan=", "--plan is empty"),
    ("--plan plan-of-another.json", "not a plan: version is 9"),
    (
        "--plan gpt2",
        "--plan gpt2 is not of some_nets:good: no parameter matches",
    ),  # a recipe that is for other models
    ("--nope", "--nope"),
    ("one too many", "one"),
]
OF_DEVICE = [
    ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, but got 'gpu'"),
    ("--device cuda:x", "--device must be auto"),
    ("--device cuda:-1", "--device must be auto"),
]
OF_ONE = {
    "init": [
        *OF_DEVICE,
        ("--out empty", "--out empty is a directory, but must be a file"),
        ("--out no/such/plan.json", "there is no directory no/such"),
        ("--out file/plan.json", "there is no directory file"),
    ],
    "inspect": [
        *OF_DEVICE,
        ("--shape 8x0", "--shape must be as in 8x3x224x224"),
        ("--shape 8x-8", "--shape must be as in"),
        ("--shape nanx8", "--shape must be as in"),
        ("--shape 8,8", "--shape must be as in"),
        ("--shape 8x٣", "--shape must be as in"),
        (f"--shape 8x{10**30}", "--shape has more values than"),
        (f"--shape {'9' * 400}x8", "--shape has more values than"),
        ("--shape 32x3", "some_nets:good does not run on normal input, 32 x 3: RuntimeError: mat1"),
        ("--shape 8x8 --length 9", "--batch and --length are of tokens"),
        ("--batch 0", "--batch"),
        ("--batch -1", "--batch"),
        ("--length 1", "--length"),
        ("--length nan", "--length"),
        (f"--length {10**18}", "more values than"),
        ("", "some_nets:good takes no tokens: say what it takes, as --shape 8x64"),
        ("--shape 8x8 --out depth.nope", "--out depth.nope must end in one of"),
        ("--shape 8x8 --out depth", "--out depth must end in one of"),
        ("--shape 8x8 --out empty", "must end in one of"),
        ("--shape 8x8 --out no/such/depth.png", "there is no directory no/such"),
    ],
    "write": [
        ("--dtype nvfp4 --format dcp", "--format dcp has no --dtype nvfp4"),
        ("--storage *=mxfp4 --format dcp", "--format dcp has no --storage"),
        ("--storage *=mxfp4 --dtype nvfp4", "with --storage, --dtype is a dtype of the rest"),
        ("--storage mxfp4", "--storage must be PATTERN=FORMAT, each once, but got 'mxfp4'"),
        ("--storage =mxfp4", "--storage must be PATTERN=FORMAT"),
        ("--storage *=mxfp4 --storage *=nvfp4", "each once, but got '*=nvfp4'"),
        ("--storage *=mxfp5", "--storage must be PATTERN=, and one of float32, bfloat16, float16,"),
        ("--shard-size 5", "shard size must be as in 5GB"),
        ("--shard-size 0GB", "shard size must be as in 5GB"),
        ("--shard-size -5GB", "shard size must be as in 5GB"),
        ("--shard-size nan", "shard size must be as in 5GB"),
        ("--shard-size 5PB", "shard size must be as in 5GB"),
        ("--shard-size 0.0001KB", "shard size must be as in 5GB"),
        ("--out file", "--out file: "),
        ("--out file/below", "--out file/below: "),
        ("--out file --dry-run", "--out file: "),
        ("--out", "--out"),
    ],
}
# (MODEL, what the line says)
MODELS = [
    (
        "some_nets:fails",
        "KeyError: 'no such key' (some_nets.py:26 in deep, called at some_nets.py:22",
    ),
    ("some_nets:exits", "some_nets:exits: SystemExit: goodbye (some_nets.py:30 in exits)"),
    ("some_nets:reads", "some_nets.py:34 reads the values of a parameter"),
    ("some_nets:text", "some_nets:text must return a torch.nn.Module, but got str"),
    ("some_nets:lazy", "some_nets:lazy: weight has no shape: give lazy layers their sizes"),
    ("some_nets:made", "it is a model that was made already; name a function"),
    ("some_nets:nothing", "has no attribute 'nothing'"),
    ("no_module:good", "there is no module 'no_module'"),
    ("needs_more:good", "No module named 'no_such_dependency' (needs_more.py:1 in <module>)"),
    ("broken:good", "(broken.py, line 1)"),
    ("some_nets.py:good", "as in some_nets:build"),
    ("some_nets.py", "of a Python file name the module and its function, as in some_nets:build"),
    ("sub/some_nets.py:good", "as in sub.some_nets:build"),
    ("", "is empty"),
    ("bom.json", 'it has no "model_type"'),
    ("nobody", "model 'nobody' is no file, none of gpt2-xl"),
    ("nobody/some-model-7b", "download its config.json (hf download nobody/some-model-7b"),
    ("empty", "the directory 'empty' has no config.json"),
    ("no/such/config.json", "is no file"),
    ("binary", "binary is not JSON"),
    ("no-json.json", "no-json.json is not JSON"),
    ("deep.json", "deep.json is not JSON"),
    ("list.json", 'it has no "model_type"'),
    ("no-type.json", 'it has no "model_type"'),
    ("unknown.json", "transformers knows no model_type 'nope'"),
    ("type-is-a-list.json", "transformers knows no model_type ['llama']"),
    ("negative.json", "gpt2"),
    ("no-heads.json", "gpt2"),
    ("x" * 5000, "x"),
]


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == faults.USER
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("fastinit: ")
    assert "mistake in fastinit" not in printed.err
    assert _options_in(printed.err) <= _options_of(arguments), "it advises what is not there"
    return printed.err


def _options_in(said: str) -> set[str]:
    """Those of ours that a line names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"\(hf download .*\)", "", said)))


def _options_of(arguments: list[str]) -> set[str]:
    """Those of its command, and what was given."""
    named = typer.main.get_command(cli.app).commands.get(next(iter(arguments), ""))
    own = (
        {
            option
            for parameter in named.params
            for option in parameter.opts + parameter.secondary_opts
        }
        if named
        else set()
    )
    return own | _options_in(" ".join(arguments))


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [(c, *row) for c in COMMANDS for row in OF_ALL]
    + [(command, *row) for command, rows in OF_ONE.items() for row in rows],
)
def test_a_bad_option_is_one_line_before_any_work(
    command: str, given: str, said: str, place: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(place.iterdir())
    arguments = [command, GOOD, *given.split()]
    if command == "write" and "--out" not in arguments:
        arguments += ["--out", "out"]
    # The model is needed to know what does not fit it; it costs nothing, but then nothing is written.
    built = "no parameter" in said or "some_nets:good" in said
    if not built:
        monkeypatch.setattr(models, "build", lambda *_: pytest.fail("a model was built first"))
    assert said in one_line(arguments, capsys)
    assert sorted(path for path in place.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("model", "said"), MODELS, ids=[model[:30] for model, _ in MODELS])
def test_a_bad_model_is_one_line(command: str, model: str, said: str, place: Path, capsys) -> None:
    if model.endswith(".json"):
        pytest.importorskip("transformers")
    out = ["--out", "out"] if command == "write" else []
    assert said in one_line([command, model, *out], capsys)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("init some_nets:int8", "codes must have a float8"),
        ("inspect some_nets:int8 --shape 8x8", "codes must have a float8"),
        ("write some_nets:int8 --out out", "codes must have a float8"),
        ("inspect some_nets:Picky --shape 2x3x4", "of my own (some_nets.py:58 in half, called at"),
        ("inspect some_nets:Picky --shape 2x3", "IndexError: table has rows 0 to 9, but is asked"),
        ("inspect some_nets:numberless --shape 2x8", "must return a tensor, but got str"),
        ("inspect some_nets:frozen --shape 2x8", "has no gradients: --no-gradients"),
        ("inspect some_nets:bare --shape 2x8", "model"),
        ("inspect gpt2.json --length 17", "--length 17 is beyond the 16 positions of gpt2.json"),
        ("nope", "nope"),
        ("init", "MODEL"),
        ("info --nope", "--nope"),
        ("--nope info", "--nope"),
        ("--json info", "--json goes behind the command, as in: info --json"),
        ("-q info", "-q goes behind the command"),
        ("--debug info", "--debug goes behind the command"),
        ("lsuv some_nets:good --data file --out p.json", "--data file is no .npy file of numbers"),
        (
            "lsuv some_nets:good --data tokens.npy --out p.json",
            "some_nets:good does not run on the tokens of tokens.npy, which are integers: RuntimeErr",
        ),
        (
            "lsuv gpt2.json --data tokens.npy --out p.json",
            "--data tokens.npy: a row of 17 is beyond the 16 positions of gpt2.json",
        ),
        (
            "lsuv some_nets:good --data nan.npy --out p.json",
            "--data nan.npy: there is no such file",
        ),
        ("lsuv some_nets:good --data empty --out p.json", "--data empty is a directory"),
        ("lsuv some_nets:good --data large.npy --out p.json", "are not finite in torch.float32"),
        (
            "lsuv some_nets:good --data x.npy --out p.json",
            "(--skip-dead leaves dead layers as they",
        ),
        ("report file --out page.pdf", "--out page.pdf must end in .html"),
        ("report empty", "STATS empty is a directory, but must be a file"),
        ("report nothing", "STATS nothing: there is no such file"),
        (
            "coord-check some_nets:wide --widths 4,8 --seeds 1 --shape 2x8",
            "--seeds must be at least 2 where there are two widths, but got 1",
        ),
        ("coord-check some_nets:wide --widths 4,8", "some_nets:wide takes no tokens: say what it"),
        ("info more", "more"),
    ],
)
def test_what_does_not_go_is_one_line(arguments: str, said: str, place: Path, capsys) -> None:
    if ".json" in arguments:
        pytest.importorskip("transformers")
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert said in one_line(arguments.split(), capsys)
    assert before == {path: path.read_bytes() for path in place.iterdir() if path.is_file()}


def test_a_mistake_of_ours_is_told_from_one_of_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(models, "build", broken)
    assert main(["init", GOOD]) == faults.OURS
    said = capsys.readouterr().err
    assert said.startswith("fastinit: a mistake in fastinit at test_cli_faults.py:")
    assert "--debug shows all of it" in said
    monkeypatch.setenv("FASTINIT_TRACEBACK", "1")
    with pytest.raises(KeyError, match="ours"):
        main(["init", GOOD])
    monkeypatch.delenv("FASTINIT_TRACEBACK")
    with pytest.raises(KeyError, match="ours"):
        main(["init", GOOD, "--debug"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "a/b"),
            "a/b: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\n  lines"), "two lines"),
        (RuntimeError("short\nException raised from x.cpp:1\nframe #0"), "short"),
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory. Tried"),
        (NotImplementedError("no"), "no"),
    ],
)
def test_an_exception_as_a_line(error: Exception, said: str) -> None:
    assert faults.line(error) == (f"fastinit: {said}", faults.USER)
    long, _ = faults.line(ValueError("x" * 5000))
    assert len(long) < faults.ROOM + 20


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python -m fastinit ARGUMENTS``"""
    code = "import runpy; runpy.run_module('fastinit', run_name='__main__')"
    return warm.run(code, *arguments, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_device_is_one_line(capsys) -> None:
    said = "fastinit: /dev/full: No space left on device\n"
    assert one_line(["init", GOOD, "--out", "/dev/full"], capsys) == said
    done = program("info", stdout="/dev/full")
    assert done.returncode == 2
    assert done.stderr == "fastinit: stdout: No space left on device\n"


def test_a_closed_pipe_is_no_error() -> None:
    """Of a whole interpreter, which also writes at its end what is left to write."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m fastinit info | true"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_nothing_moves_a_cursor_in_a_pipe() -> None:
    colours = dict.fromkeys(("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"), "1")
    done = program("write", GOOD, "--out", "out", env={**os.environ, **colours})
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_model_may_be_named_as_a_recipe_or_a_file_is(place: Path, capsys) -> None:
    assert main(["init", GOOD, "--out", "llama"]) == 0
    assert main(["init", GOOD, "--plan", "torch_default"]) == 0
    assert main(["init", GOOD, "--plan", "./llama"]) == 0
    capsys.readouterr()
