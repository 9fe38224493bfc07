"""What shells complete: commands, options, and the values of those that have a choice."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("typer")

import typer

from fastinit.base import program
from fastinit.command import cli

ANY = {
    "--dtype": "bfloat16",
    "--format": "dcp",
    "--norm": "l1",
    "--optimizer": "sgd",
    "--plan": "llama",
    "--device": "cuda",
    "MODEL": "gpt2-xl",
}
"""One of what each option that has a choice can be, and the model."""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_what_has_a_choice(shell: str, capsys, monkeypatch) -> None:
    """As it asks: what comes behind the words so far, in the environment."""
    monkeypatch.setattr("sys.argv", [program.SCRIPT])

    def completed(*words: str) -> str:
        """What the last of them may be, which is empty."""
        asked = {
            "_TORCH_FASTINIT_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": " ".join([program.SCRIPT, *words]),
            "COMP_CWORD": str(len(words)),
            "_TYPER_COMPLETE_ARGS": " ".join([program.SCRIPT, *words]),
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        with monkeypatch.context() as here:
            for name, value in asked.items():
                here.setenv(name, value)
            with pytest.raises(SystemExit):
                cli.main([])
        return capsys.readouterr().out

    commands = typer.main.get_command(cli.app).commands
    assert all(name in completed("") for name in commands)
    found = set()
    for name, command in commands.items():
        for parameter in command.params:
            option = parameter.opts[-1] if parameter.opts[-1] in ANY else parameter.metavar
            if option in ANY:
                words = [name] if option == "MODEL" else [name, "gpt2-xl", option]
                assert ANY[option] in completed(*words, ""), (name, option)
                found.add(option)
    assert found == set(ANY)


@pytest.mark.parametrize("called", ["/usr/bin/torch-fastinit", "/lib/fastinit/__main__.py"])
def test_completion_is_of_the_script_whoever_is_asked(called: str, capsys, monkeypatch) -> None:
    """A shell looks at the first word: of python it would be that of all its programs."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr("sys.argv", [called])
    with pytest.raises(SystemExit) as ended:  # typer's own
        cli.main(["--show-completion", "bash"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert f"complete -o default -F _torch_fastinit_completion {program.SCRIPT}" in shown


def test_completion_that_cannot_be_written_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "file"))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert cli.main(["--install-completion", "bash"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastinit: ")
    assert said.count("\n") == 1
