"""What every command has: data with --json, silence with -q; and lsuv and bench."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")

import typer

from fastinit import __main__ as program
from fastinit.command import cli, progress
from fastinit.plan.plan import Plan
from fastinit.variance.watch.watch import watch

np = pytest.importorskip("numpy")

NET = """\
from torch import nn
def build(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
def table():
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))
def bag():
    return nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 4))
class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(10, 4), nn.Linear(4, 4)
    def forward(self, *, input_ids):
        return self.head(self.words(input_ids))
class Hot(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, 4)
    def forward(self, words):
        return self.head(nn.functional.one_hot(words, 10).float())
"""

COMMANDS = {
    "info": ["info"],
    "init": ["init", "net:build", "--compare"],
    "inspect": ["inspect", "net:build", "--shape", "4x8"],
    "coord-check": [
        *("coord-check", "net:build", "--widths", "16,32", "--shape", "4x8", "--seeds", "2"),
    ],
    "lsuv": ["lsuv", "net:build", "--data", "x.npy", "--out", "plan.json"],
    "bench": ["bench", "--device", "cpu", "--elements", "4096", "--rounds", "1"],
    "write": ["write", "net:build", "--out", "out"],
    "write --dry-run": ["write", "net:build", "--out", "out", "--dry-run"],
    "write --format dcp": ["write", "net:build", "--out", "out", "--format", "dcp"],
    "report": ["report", "stats.jsonl"],
}
PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def keys_of(name: str) -> set[str]:
    """Those that the page promises."""
    [row] = re.findall(rf"^\| `{name}` \| (`.*`) \|$", PAGE.read_text(), re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", row))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "net.py").write_text(NET)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 8)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    import sys

    sys.modules.pop("net", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_gives_data_and_keeps_quiet(name: str, capsys) -> None:
    if name == "report":
        net = torch.nn.Linear(8, 4)
        with watch(net, every=1, to="stats.jsonl") as watched:
            net(torch.randn(4, 8)).sum().backward()
            watched.step()
    status = cli.main([*COMMANDS[name], "--json", "--quiet"])
    said = capsys.readouterr()
    assert status in (0, 3), said.err  # 3: a layer that is not flat
    assert json.loads(said.out, parse_constant=pytest.fail).keys() == keys_of(name)
    assert said.out.count("\n") == 1
    assert said.err == ""


def test_every_command_is_in_the_table() -> None:
    listed = {command.name for command in cli.app.registered_commands}
    assert listed == {name.partition(" ")[0] for name in COMMANDS}


def test_prose_is_on_one_stream(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cli.installation.info()  # it times what it says, each time anew
    monkeypatch.setattr(cli.installation, "info", lambda: found)
    assert cli.main(["info"]) == 0
    prose = capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == prose
    assert cli.main(["info", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [30, 40, 51, 52, 79, 80, 200])
def test_progress_fits_the_terminal_and_says_what_remains(width: int) -> None:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    bar = Progress(*progress._columns("elements", width), console=console, auto_refresh=False)
    task = bar.add_task("fill by triton, fresh memory", total=4e9, completed=1e9)
    bar.tasks[task].finished_speed = 987_654_321.0
    with console.capture() as shown:
        console.print(bar.get_renderable())
    [line] = shown.get().splitlines()
    assert len(line) <= width
    assert re.match(r"fill by .* -:--:-- left *$", line)
    assert ("elements/s" in line) == (width >= 52)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_fits_and_cuts_no_sentence(option: str, capsys) -> None:
    for words in ([], *([name] for name in typer.main.get_command(cli.app).commands)):
        assert cli.main([*words, option]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert not [line for line in lines if re.search(r"\w\.\.\.$", line)]


def test_an_interrupt_while_it_imports_is_no_traceback(monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "main", interrupted)
    assert program.run() == 130
    assert capsys.readouterr() == ("", "")


def test_the_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == cli.installation.version()


def test_lsuv_saves_a_plan_of_which_each_layer_has_the_std_asked_for(capsys) -> None:
    words = ["lsuv", "net:build", "--data", "x.npy", "--out", "plan.json", "--target-std", "0.5"]
    assert cli.main([*words, "--seed", "3", "--batch", "64"]) == 0
    assert "= std" in capsys.readouterr().out
    plan = Plan.load("plan.json")
    assert plan.seed == 3
    import net

    model = plan.apply_(net.build())
    x = torch.from_numpy(np.load("x.npy")).float()
    hidden = model[0](x)
    # float32 moments of a BLAS's products, whose last bits are the machine's; bias is scaled apart.
    assert hidden.std(correction=0).item() == pytest.approx(0.5, rel=0.02)  # tol of lsuv_
    assert model(x).std(correction=0).item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("asked", ["cuda", "cuda:3"])
def test_lsuv_on_a_gpu_that_is_not_there_is_one_line(asked: str, capsys) -> None:
    assert cli.main([*COMMANDS["lsuv"], "--device", asked]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"fastinit: --device {asked}: no GPU can be used: ")
    assert printed.err.count("\n") == 1
    assert not Path("plan.json").exists()


def test_lsuv_finds_the_same_scales_on_any_device_and_in_batches(capsys) -> None:
    scales = []
    for further in (["--device", "cpu"], [], ["--batch", "10"]):
        assert cli.main([*COMMANDS["lsuv"], *further, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        if not torch.cuda.is_available():
            assert said["device"] == "cpu"
        scales.append([layer["scale"] for layer in said["layers"]])
    # In batches the second layer's is aimed at until its variance fits, to lsuv_'s tol of 0.02.
    assert scales[1] == pytest.approx(scales[0], rel=0.01)
    assert scales[2] == pytest.approx(scales[0], rel=0.01)


BAD = {
    "a scalar": (np.array(3), "but has int64 []"),
    "text": (np.array(["a"]), "but has <U1 [1]"),
    "no rows": (np.zeros((0, 8)), "bad.npy has no values: it is float64 [0, 8]"),
    "rows of nothing": (np.zeros((8, 0)), "bad.npy has no values: it is float64 [8, 0]"),
    "no tokens": (np.zeros((0, 5), int), "bad.npy has no values: it is int64 [0, 5]"),
    "booleans": (np.ones((2, 2), bool), "but has bool [2, 2]"),
    "objects": (np.array([[None]]), "is no .npy file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_data_that_is_none_is_one_line(kind: str, capsys) -> None:
    array, said = BAD[kind]
    np.save("bad.npy", array, allow_pickle=True)
    assert cli.main(["lsuv", "net:build", "--data", "bad.npy", "--out", "plan.json"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not Path("plan.json").exists()


@pytest.mark.parametrize("model", ["table", "bag", "Named", "Hot"])
def test_lsuv_runs_on_tokens_whatever_takes_them(model: str, capsys) -> None:
    np.save("tokens.npy", np.random.default_rng(0).integers(0, 10, (32, 5)).astype(np.uint8))
    words = ["lsuv", f"net:{model}", "--out", "plan.json", "--data"]
    assert cli.main([*words, "tokens.npy", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [layer["std"] for layer in layers] == pytest.approx([1.0] * len(layers), abs=0.02)
    before = Path("plan.json").read_bytes()
    np.save("wrong.npy", np.full((4, 5), 10))
    assert cli.main([*words, "wrong.npy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastinit: net:{model} does not run on the tokens of wrong.npy, which")
    assert said.count("\n") == 1
    assert Path("plan.json").read_bytes() == before
