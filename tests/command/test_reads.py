"""No command writes over a file that it has read, whatever it is called there, nor over another's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("typer")

import typer

from fastinit.command import cli, faults, options, reads
from fastinit.plan.plan import Plan

np = pytest.importorskip("numpy")

NET = """\
import json
from pathlib import Path

from torch import nn


def build(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def sized(width=16):
    Path("size").read_bytes()
    return build(width)


def hidden(width=16):
    try:
        Path("size").read_bytes()
    except Exception:
        pass
    return build(width)


class Late(nn.Linear):
    def forward(self, x):
        with open("size", "rb"):
            return super().forward(x)


def late(width=16):
    return nn.Sequential(Late(8, width), nn.Linear(width, 4))
"""
PLAN = '{"format": "fastinit.plan", "version": 1, "stream_version": 1, "seed": 0, "parameters": []}'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a package, a model's folder, data, and other names of the same files."""
    (tmp_path / "read_net.py").write_text(NET)
    (tmp_path / "read_package").mkdir()
    (tmp_path / "read_package" / "__init__.py").touch()
    (tmp_path / "read_package" / "net.py").write_text(NET)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 8)))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_head": 2,'
        '"n_layer": 1, "bos_token_id": null, "eos_token_id": null, "a_note": "of mine"}'
    )
    (tmp_path / "size").write_text(PLAN)
    (tmp_path / "source.link").symlink_to("read_net.py")
    os.link(tmp_path / "read_net.py", tmp_path / "source.hard")
    (tmp_path / "folder.link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Plan({}, seed=0).save("empty.plan")
    assert cli.main(["init", "read_net:build", "--out", "plan.json", "-q"]) == 0
    yield tmp_path
    for module in ("read_net", "read_nested", "read_package.net", "read_package"):
        sys.modules.pop(module, None)


def files(place: Path) -> dict[Path, bytes]:
    """All that are there, but for bytecode."""
    found = (path for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.read_bytes() for path in found}


def refused(arguments: list[str], said: str, place: Path, capsys) -> None:
    before = files(place)
    assert cli.main(arguments) == faults.USER
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert files(place) == before
    assert printed.out == "" or "read_net:late" in arguments  # which is known when it has run


WITH_DATA = ["--data", "x.npy"]
RUN = {
    "init": ["init", "read_net:{}"],
    "lsuv": ["lsuv", "read_net:{}", *WITH_DATA],
    "inspect": ["inspect", "read_net:{}", "--shape", "4x8"],
    "coord-check": [
        *("coord-check", "read_net:{}", "--widths", "8,16,32", "--shape", "4x8", "--seeds", "1"),
    ],
    "write": ["write", "read_net:{}"],
    "report": [],
}
"""Of every command that writes: how it is called, but for --out."""


def test_the_table_has_every_command_that_writes() -> None:
    commands = typer.main.get_command(cli.app).commands
    assert RUN.keys() == {
        name for name, one in commands.items() if any("--out" in p.opts for p in one.params)
    }


# A picture's and a page's ending is asked for, a plan's content: size is the file that is read.
ENDING = {"inspect": ".png", "coord-check": ".png", "init": ".json", "lsuv": ".json"}


@pytest.mark.parametrize("build", ["sized", "hidden", "late"])
@pytest.mark.parametrize("command", ENDING)
def test_what_a_users_code_has_read_is_kept(command: str, build: str, place: Path, capsys) -> None:
    if command in ("inspect", "coord-check"):
        pytest.importorskip("matplotlib")
    if (command, build) == ("init", "late"):
        pytest.skip("init runs no forward")
    out = f"out{ENDING[command]}"
    os.link("size", out)
    arguments = [word.format(build) for word in RUN[command]]
    refused([*arguments, "--out", out], f"--out {out} is a file that is read", place, capsys)


def test_what_is_written_may_be_there_if_nobody_reads_it(place: Path, capsys) -> None:
    Path("out.json").write_text(PLAN)
    for out in ("out.json", "plan.json"):
        assert cli.main(["init", "read_net:sized", "--out", out, "--seed", "5", "-q"]) == 0
        assert Plan.load(out).seed == 5


@pytest.mark.parametrize("command", ["init", "lsuv"])
@pytest.mark.parametrize(
    ("model", "out"),
    [
        ("read_net:build", "read_net.py"),
        ("read_net:build", "./read_net.py"),
        ("read_net:build", "source.link"),
        ("read_net:build", "source.hard"),
        ("read_package.net:build", "read_package/net.py"),
        ("folder", "folder/config.json"),
        ("folder", "folder.link/config.json"),
        ("folder.link", "folder/config.json"),
        ("folder/config.json", "folder/config.json"),
        ("read_net:build", "x.npy"),
    ],
)
def test_a_plan_replaces_only_a_plan(command, model, out, place: Path, capsys) -> None:
    words = [command, model, *(WITH_DATA if command == "lsuv" else []), "--out", out]
    refused(words, f"--out {Path(out)} is there and is not a plan: it", place, capsys)


def test_a_plan_is_not_written_over_itself(place: Path, capsys) -> None:
    words = ["init", "read_net:build", "--plan", "plan.json", "--seed", "9", "--out", "plan.json"]
    refused(words, "--out plan.json is a file that is read", place, capsys)


@pytest.mark.parametrize("further", [[], ["--overwrite"], ["--dry-run"]])
@pytest.mark.parametrize(
    ("model", "out"), [("folder", "folder"), ("folder", "folder.link"), ("folder.link", "folder")]
)
def test_a_checkpoint_does_not_replace_its_config(model, out, further, place: Path, capsys) -> None:
    pytest.importorskip("transformers")
    said = f"--out {out} would replace {out}/config.json, a file that is read"
    refused(["write", model, "--out", out, *further], said, place, capsys)


def test_a_checkpoint_goes_beside_what_it_does_not_replace(place: Path, capsys) -> None:
    """Its own source and plan; and files of the format that it does not write."""
    words = ["write", "read_net:sized", "--plan", "plan.json", "--out", ".", "-q"]
    assert cli.main(words) == 0
    Path("model.safetensors").unlink()
    os.link("size", ".metadata")
    assert cli.main(words) == 0
    said = "--out . would replace .metadata, a file that is read"
    refused([*words, "--format", "dcp", "--overwrite"], said, place, capsys)


def test_a_page_does_not_replace_its_numbers_nor_what_is_no_page(place: Path, capsys) -> None:
    Path("stats.html").write_text('{"step": 1}\n')
    for out in ("stats.html", "size"):
        said = f"--out {out} is there and is not a page"
        refused(["report", "stats.html", "--out", out], said, place, capsys)


def test_a_command_within_a_command_has_its_own(place: Path, capsys) -> None:
    """What the inner one writes the outer may replace; what it reads is read by both."""
    inner = "cli.main(['init', 'read_net:sized', '--out', 'inner.json', '-q'])"
    text = f"{NET}\n\nfrom fastinit.command import cli\nassert {inner} == 0\n"
    os.link("size", "out.json")
    for out, status in (("inner.json", 0), ("out.json", faults.USER)):
        Path("read_nested.py").write_text(text)
        sys.modules.pop("read_nested", None)
        assert cli.main(["init", "read_nested:build", "--out", out, "-q"]) == status
    assert Path("out.json").read_text() == PLAN


def test_what_only_speaks_of_a_plan_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(4, 3)\n")
    for text in ('{"plan": {"format": "fastinit.plan"}}', 'as in "format": "fastinit.plan"', "[]"):
        Path("run.json").write_text(text)
        with pytest.raises(ValueError, match="is not a plan: it would be lost"):
            options.plan_file("--out", Path("run.json"))
        assert Path("run.json").read_text() == text


def test_a_function_that_goes_elsewhere_changes_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/made.txt").write_text("precious")
    with reads.noted():
        options.file("--out", Path("made.txt"))
        os.chdir("sub")
        reads.check()
        assert Path.cwd() == tmp_path


def test_a_stream_that_leads_to_no_file_is_refused() -> None:
    for stream in ("/dev/stdout", "/dev/fd/99", "/proc/self/fd/99"):
        if not Path(stream).is_file():
            with pytest.raises(ValueError, match=f"--out {stream} leads to no file"):
                options.file("--out", Path(stream))
