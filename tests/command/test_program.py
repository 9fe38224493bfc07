"""What only a process has: its first seconds, streams that are closed, an encoding."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm

from fastinit.base import program

pytest.importorskip("typer")

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys\nfrom fastinit.__main__ import run\nsys.exit(run())\n"
NET = "from torch import nn\ndef build(): return nn.Linear(8, 4)\n"


@pytest.mark.parametrize(
    ("argv", "words", "own"),
    [
        (["-m"], ["-m", "fastinit"], True),
        (["-m", "init", "-m"], ["-X", "dev", "-m", "fastinit", "init", "-m"], True),
        (["-m", "info"], ["-mfastinit", "info"], True),
        (["-m", "fastinit"], ["-m", "pytest", "fastinit"], False),
        (["-m"], ["-m", "fastinit.command.models"], False),
        (["bin/torch-fastinit", "info"], ["bin/torch-fastinit", "info"], True),
        (["Scripts/torch-fastinit.exe"], ["Scripts/torch-fastinit.exe"], True),
        (["fastinit.py"], ["fastinit.py"], False),
        (["-c"], ["-c", "import fastinit"], False),
        ([""], [], False),
        ([], [], False),
    ],
)
def test_whose_process_it_is(argv, words, own, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sys.argv`` as Python has it while it imports the package, and how it was started."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    assert program.is_own() == own


@pytest.mark.skipif(os.name != "posix", reason="no signals here")
@pytest.mark.parametrize(
    "words", [["-m", "fastinit", "info"], ["torch-fastinit", "info"], ["mine"]]
)
def test_ctrl_c_while_it_imports_torch_says_nothing(words, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    for name in ("torch-fastinit", "mine"):
        (tmp_path / name).write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        # Where the tests run in the background, it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == -signal.SIGINT
    assert ("KeyboardInterrupt" in done.stderr) == (
        words == ["mine"]
    )  # who imports it has his own way
    assert bool(done.stderr) == (words == ["mine"])


def test_a_command_that_runs_can_be_interrupted() -> None:
    code = """
        import signal, sys
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in the first seconds
        sys.argv = ["torch-fastinit"]
        from fastinit.base import program
        program.begin()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup's
        program.begin()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    """
    done = warm.run(code)
    assert done.returncode == 0, done.stderr


def started(*words: str, before: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """``torch-fastinit WORDS``, after some lines."""
    code = f"{before}\nimport sys\nfrom fastinit.__main__ import run\nsys.exit(run())"
    return warm.run(code, *words, **options)


COMMANDS = {
    "init": ["--device", "cpu"],
    "inspect": ["--shape", "4x8", "--device", "cpu"],
    "write": ["--out", "out"],
}


ALL = ["stdin", "stdout", "stderr"]


@pytest.mark.parametrize(
    ("command", "closed"),
    [*(("init", [one]) for one in ALL), *((command, ALL) for command in COMMANDS)],
)
def test_nobody_has_to_listen(command: str, closed: list[str], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    before = "import os, sys\n" + "".join(
        f"os.close({ALL.index(name)}); sys.{name} = None\n" for name in closed
    )
    words = [command, "net:build", *COMMANDS[command]]
    done = started(*words, before=before, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert bool(done.stdout) == ("stdout" not in closed)
    assert (tmp_path / "out" / "model.safetensors").exists() == (command == "write")


def test_what_is_opened_next_does_not_get_the_output() -> None:
    """A file that has a closed stream's number gets what is printed."""
    code = """
        import os, sys, tempfile
        from fastinit.base import program
        for number, name in enumerate(["stdin", "stdout", "stderr"]):
            os.close(number)
            setattr(sys, name, None)
        program.begin()
        sys.exit(tempfile.TemporaryFile().fileno() < 3)
    """
    assert warm.run(code).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_an_encoding_without_a_character_is_no_error(encoding, monkeypatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    program.begin()
    print("trunc ±2σ, a name \udcff", end="", flush=True)
    said = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "trunc" in said
    assert said.endswith("\\udcff")
    assert ("σ" in said) == (encoding == "utf-8")
