"""What a watch that stays on writes: whole lines, of one writer, that survive kills and full disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import warm
from test_watch_steps import lines, train
from watching import hooks, mlp

from fastinit.variance.watch.result import Measured
from fastinit.variance.watch.watch import watch


def test_a_line_that_a_crash_cut_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    model = mlp()
    for cut in (b'{"step": 1, "la', b"x" * 200_000, b""):
        with watch(model, every=1, to=path) as w:
            train(w, model, 1)
        with open(path, "ab") as file:
            file.write(cut)
    with watch(model, every=1, to=path) as w:
        train(w, model, 1)
    assert [line["step"] for line in lines(path)] == [0] * 4


OTHERS = {
    "weights, without a line": bytes(range(256)) * 300,
    "text, its last line cut": b"date,loss\n1,2",
    "lines of somebody else": b'{"loss": 3}\n',
    "an empty line": b"\n",
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_something_else_is_refused_and_stays_as_it_is(what: str, tmp_path: Path) -> None:
    path, model = tmp_path / "mine", mlp()
    path.write_bytes(OTHERS[what])
    plain = hooks(model)
    with pytest.raises(ValueError, match="mine holds something else"):
        watch(model, every=1, to=path).__enter__()
    assert path.read_bytes() == OTHERS[what]
    assert hooks(model) == plain


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 500])
def test_a_file_of_one_line_that_was_cut_is_begun_anew(cut: int, tmp_path: Path) -> None:
    path, model = tmp_path / "stats.jsonl", mlp()
    for _ in range(2):
        with watch(model, every=1, to=path) as w:
            train(w, model, 1)
        assert [line["step"] for line in lines(path)] == [0]
        path.write_bytes(path.read_bytes()[:cut])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match=str(path)):
            watch(mlp(), every=1, to=path).__enter__()


def test_a_disk_that_fills_up_takes_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    program = f"""
import os, resource, signal, torch, fastinit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, most = {str(path)!r}, resource.RLIM_INFINITY
model = torch.nn.Linear(4, 4)
with fastinit.watch(model, every=1, to=path) as w:
    for step in range(7):
        room = os.path.getsize(path) + 300 if step in (3, 4) else most  # a part of a line
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
        model(torch.randn(2, 4))
        try:
            w.step()
        except OSError:
            print(step)
"""
    assert warm.run(program).stdout.split() == ["3", "4"]  # which tell of 2 and 3
    assert [line["step"] for line in lines(path)] == [0, 1, 4, 5, 6]


def test_what_was_told_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    program = f"""
import os, torch, fastinit
model = torch.nn.Linear(4, 4)
with fastinit.watch(model, every=1, to={str(path)!r}) as w:
    for step in range(5):
        model(torch.randn(2, 4))
        w.step()
    os.kill(os.getpid(), 9)
"""
    assert warm.run(program).returncode == -9
    assert [line["step"] for line in lines(path)] == [0, 1, 2, 3]  # all but the one on its way


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    model = mlp()
    second = watch(model, every=1, to=path)
    with watch(model, every=1, to=path), pytest.raises(OSError, match="another watch writes it"):
        second.__enter__()
    with watch(model, every=1, to=path):
        pass


def test_everybody_is_told_though_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    model = mlp()

    def fail(measured: Measured) -> None:
        raise ConnectionError("the logger is away")

    w = watch(model, every=1, to=[fail, path])
    with pytest.warns(UserWarning, match="not told"), pytest.raises(ConnectionError), w:
        train(w, model, 2)
    assert [line["step"] for line in lines(path)][:1] == [0]


@pytest.mark.parametrize("how", ["removed", "renamed", "its folder is gone", "another is there"])
def test_a_file_that_is_taken_away_is_not_written_in_secret(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = mlp(), tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with watch(model, every=1, to="stats.jsonl") as w:
        train(w, model, 2)  # of which the first was told
        monkeypatch.chdir("/")
        if how == "its folder is gone":
            folder.rename(tmp_path / "old")
            with pytest.raises(FileNotFoundError, match=r"run/stats\.jsonl"):
                train(w, model, 1)
            folder.mkdir()
        else:
            (folder / "stats.jsonl").rename(tmp_path / "old")
        if how == "another is there":
            (folder / "stats.jsonl").write_text("mine\n")
            with pytest.raises(ValueError, match="holds something else"):
                train(w, model, 1)
            (folder / "stats.jsonl").unlink()
        train(w, model, 2)
    missed = how in ("its folder is gone", "another is there")  # one step, which raised
    assert [x["step"] for x in lines(folder / "stats.jsonl")] == (
        [2, 3, 4] if missed else [1, 2, 3]
    )
