"""The installation: whose files these are, and that a slow one says so, once, with what mends it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import warm

import fastinit
from fastinit.backends import choose as backends
from fastinit.backends import slow
from fastinit.backends.slow import SlowBackendWarning
from fastinit.base import installed

PACKAGE = Path(fastinit.__file__).parent
ROOT = PACKAGE.parent

# --- others in the same folder -------------------------------------------------------------------

# Distributions that write into fastinit/: the two that are on the index, and one that nobody knows.
STRANGERS = {
    "fastinit": {
        "__init__.py": "__version__ = '0.1.0'",
        "cli.py": "app = 1",
        "models/__init__.py": "",
    },
    "fastinit-cli": {"__init__.py": "", "cli.py": "def main(): print('hello')"},
    "some-other": {"patching/__init__.py": "", "patching/more.py": ""},
}


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """What pip does: it writes the files, over those that are there, and lists them."""
    for file, text in files.items():
        (site / "fastinit" / file).parent.mkdir(parents=True, exist_ok=True)
        (site / "fastinit" / file).write_text(text)
    about = site / f"{name.replace('-', '_')}-9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 9\n")
    (about / "RECORD").write_text("".join(f"fastinit/{file},,\n" for file in files))


def ours() -> dict[str, str]:
    return {str(p.relative_to(PACKAGE)): p.read_text() for p in PACKAGE.rglob("*.py")}


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python, with a folder as its site-packages, and what torch needs behind it."""
    # A folder without an __init__ counts only where no other on the path has one.
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = {"", os.getcwd(), str(Path(__file__).parents[2]), *given}
    path = [str(site), *(folder for folder in sys.path if folder not in ours)]
    alone = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FASTINIT_ISA")}
    return warm.run(*arguments, cwd=site, env=alone, path=path)


@pytest.mark.parametrize("last", ["ours", "theirs", "theirs, then removed"])
@pytest.mark.parametrize("stranger", list(STRANGERS))
def test_another_project_in_the_folder_is_refused_by_name(
    tmp_path: Path, stranger: str, last: str
) -> None:
    files = STRANGERS[stranger]
    order = [(installed.DISTRIBUTION, ours()), (stranger, files)]
    for name, content in order if last != "ours" else reversed(order):
        install(tmp_path, name, content)
    if last == "theirs, then removed":
        for file in files:
            (tmp_path / "fastinit" / file).unlink()
        shutil.rmtree(tmp_path / f"{stranger.replace('-', '_')}-9.dist-info")
    harmed = not (
        (
            last == "ours" and stranger != "some-other"
        )  # what is left of its files hides none of ours
        or (last == "theirs, then removed" and "__init__.py" not in files)
    )
    if not harmed:
        done = run(tmp_path, "import fastinit; print(fastinit.__file__)")
        assert done.stdout == f"{tmp_path / 'fastinit' / '__init__.py'}\n", done.stderr
        return
    statements = ["import fastinit.base.installed"]
    if stranger == "fastinit":  # whose __init__ is not ours: what is behind it has to see that
        statements.append("from fastinit import init")
        statements.append("import runpy; runpy.run_module('fastinit', run_name='__main__')")
    for statement in statements:
        done = run(tmp_path, statement, "info")
        assert done.returncode != 0
        said = done.stderr.splitlines()[-1]
        assert f"{tmp_path / 'fastinit'} is not torch-fastinit's alone" in said
        if last == "theirs, then removed":
            assert "pip uninstall" not in said
        else:
            assert f"{stranger} 9 is installed into the same folder" in said
            assert f"pip uninstall -y {stranger} && pip install" in said
        assert "torch-fastinit" in said.rpartition("pip install")[2]


def test_whose_files_these_are_is_said_without_torch(tmp_path: Path) -> None:
    install(tmp_path, installed.DISTRIBUTION, ours())
    install(tmp_path, "some-other", STRANGERS["some-other"])
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import fastinit"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "some-other 9 is installed into the same folder" in done.stderr.splitlines()[-1]


def test_this_folder_is_ours() -> None:
    installed.check()
    assert fastinit.__distribution__ == installed.DISTRIBUTION


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        *(("1.13.1", False), ("2.9.0a0+git1", False), ("2.10.0+cpu", False)),
        *(("2.11.0a0+git1", True), ("2.11.0", True), ("2.100.1+cu130", True), ("3.0.0.dev1", True)),
    ],
)
def test_a_torch_that_is_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if fits:
        return installed.check_torch()
    oldest = ".".join(map(str, installed.TORCH))
    assert f'dependencies = ["torch>={oldest}"]' in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(ImportError, match=rf"needs torch {oldest} or later, but .* {version[:4]}"):
        installed.check_torch()


def test_info_names_who_else_wrote_into_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "in the same folder" not in fastinit.info()
    monkeypatch.setattr(installed, "others", lambda: ["fastinit-cli 9"])
    assert fastinit.info()["in the same folder"] == ["fastinit-cli 9"]


# --- what hints name -----------------------------------------------------------------------------


def test_hints_name_packages_that_the_extras_name() -> None:
    """Not an extra of ours: on the index these names are another project's, or nobody's."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == installed.DISTRIBUTION
    assert installed.DISTRIBUTION in project["scripts"]
    wanted = [text for texts in project["optional-dependencies"].values() for text in texts]
    known = {re.split(r"[^\w-]", text)[0] for text in wanted}
    hints = 0
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert "fastinit[" not in line, path
            for named in re.findall(r"pip install ([a-z][\w -]*)", line):
                assert set(named.split()) <= known, (path, line)
                hints += 1
    assert hints > 5


# --- slow installations --------------------------------------------------------------------------


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an import of a build that serves nothing, which said so to nobody."""
    monkeypatch.setattr(slow, "_said", set())
    monkeypatch.setattr(slow, "_done", type(slow._done)())
    monkeypatch.setattr(slow, "LARGE", 1 << 14)  # what takes the reference a moment
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends.native, "missing", "it has gone")


def said(work) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(w.message) for w in caught if w.category is SlowBackendWarning]


@pytest.mark.usefixtures("unsaid")
@pytest.mark.parametrize(
    "work",
    [
        lambda: fastinit.init.uniform_(torch.empty(8, 1 << 11).t(), seed=0),
        lambda: [fastinit.init.uniform_(torch.empty(8, 1 << 8).t(), seed=0) for _ in range(8)],
        lambda: fastinit.moments(torch.zeros(1 << 14)),
        lambda: fastinit.Plan({"weight": fastinit.Fill.constant(1.0)}).apply_(
            torch.nn.Linear(1 << 7, 1 << 7, bias=False)
        ),
    ],
    ids=["one large fill", "many small ones", "moments", "a plan"],
)
def test_much_work_of_the_reference_is_said_once(work) -> None:
    fastinit.init.uniform_(torch.empty(8, 100).t(), seed=0)  # a little is not said
    [text] = said(work)
    assert "reference backend for cpu tensors" in text
    assert "not native: it has gone" in text
    assert said(work) == []


@pytest.mark.usefixtures("unsaid")
def test_what_was_asked_for_is_not_said() -> None:
    def work() -> None:
        with fastinit.backend("reference"):
            fastinit.init.uniform_(torch.empty(8, 1 << 11).t(), seed=0)
            fastinit.moments(torch.zeros(1 << 14))

    assert said(work) == []
    without = "the native module is not there: FASTINIT_NATIVE=OFF when fastinit was installed"
    assert said(lambda: slow.at_import(without)) == []
    assert said(lambda: fastinit.init.uniform_(torch.empty(8, 1 << 11).t(), seed=0)) == []


@pytest.mark.usefixtures("unsaid")
@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("other", [None, Path("/site/fastinit")])
def test_an_import_without_a_native_module_says_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, source: bool, other: Path | None
) -> None:
    monkeypatch.setattr(installed, "in_source_tree", lambda: source)
    monkeypatch.setattr(installed, "elsewhere", lambda: other)
    monkeypatch.setattr(installed, "_origin", lambda: "/clone")
    [text] = said(lambda: slow.at_import("no C++ compiler"))
    assert "no C++ compiler" in text
    if source:
        assert f"To mend it: pip install -e {ROOT}" in text
        assert ("the one in /site/fastinit has been built" in text) is (other is not None)
    else:
        assert "--force-reinstall --no-deps /clone, with a C++17 compiler" in text
    assert said(lambda: slow.at_import("no C++ compiler")) == []


def test_a_source_folder_without_a_build_says_so_and_takes_no_other_folders_module(
    tmp_path: Path,
) -> None:
    """Not even that of an editable install, which offers its own for a folder that has none."""
    shutil.copytree(PACKAGE, tmp_path / "fastinit", ignore=shutil.ignore_patterns("_native*"))
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "stream.h").touch()
    done = run(
        tmp_path,
        "import fastinit, torch; print(fastinit.backends.native.module); "
        "fastinit.init.uniform_(torch.empty(1 << 20))",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"
    assert done.stderr.count("SlowBackendWarning") == 1
    assert f"To mend it: pip install -e {tmp_path}" in done.stderr


@pytest.mark.skipif(backends.native.module is None, reason="without the native module")
@pytest.mark.parametrize("older", [True, False])
def test_a_module_that_was_built_of_another_source_is_not_used(tmp_path: Path, older: bool) -> None:
    """As after a pull without a build."""
    shutil.copytree(PACKAGE, tmp_path / "fastinit")
    if older:
        with (tmp_path / "fastinit" / "_native.pyi").open("a") as stub:
            stub.write("def added() -> None: ...\n")
    done = run(
        tmp_path,
        "import fastinit, torch; print(fastinit.backends.native.module is None); "
        "w = fastinit.init.uniform_(torch.empty(4), seed=0); print(w.tolist())",
    )
    assert done.returncode == 0, done.stderr
    same = fastinit.init.uniform_(torch.empty(4), seed=0).tolist()
    assert done.stdout == f"{older}\n{same}\n"
    assert ("was not built from this source" in done.stderr) is older
    assert done.stderr.count("To mend it: pip install") == older
