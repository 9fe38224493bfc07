"""What is installed: the distribution that brought this package, and whether the folder is its own.

The distribution is ``torch-fastinit``. On the package index ``fastinit`` and ``fastinit-cli`` are other
projects, whose import name is fastinit too: pip writes them into the same folder, over our files and
without a word. Importing this module looks whether what is there is ours, and whether torch will do.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "torch-fastinit"
TORCH = (2, 11)  # the oldest that all tests pass with; a build before its release will do
_FOLDER = Path(__file__).resolve().parents[1]


def version() -> str | None:
    """The installed distribution's version, None where none is installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def others() -> list[str]:
    """Names and versions of other distributions that have files in this folder.

    It reads the file list of all that is installed beside this package, which takes a while.
    """
    inside = f"{_FOLDER.name}/"
    return sorted(
        f"{found.name} {found.version}"
        for found in metadata.distributions(path=[str(_FOLDER.parent)])
        if found.name != DISTRIBUTION
        and any(line.startswith(inside) for line in (found.read_text("RECORD") or "").splitlines())
    )


def check() -> None:
    """Raises ImportError unless the package is ours: its ``__init__`` is, and none hides our modules."""
    package = sys.modules["fastinit"]
    hidden = [p.stem for p in _FOLDER.glob("*.py") if (_FOLDER / p.stem / "__init__.py").exists()]
    if getattr(package, "__distribution__", None) != DISTRIBUTION:
        what = "fastinit/__init__.py is missing or another project's"
    elif hidden:
        what = f"modules of another project hide {', '.join(f'fastinit.{name}' for name in hidden)}"
    else:
        return
    strangers = others()
    names = " ".join(name.split()[0] for name in strangers)
    remove = f"pip uninstall -y {names} && " if names else ""
    raise ImportError(
        f"{_FOLDER} is not {DISTRIBUTION}'s alone: {what}"
        + (f" ({', '.join(strangers)} is installed into the same folder)" if strangers else "")
        + f". To mend it: {remove}{reinstall()}"
    )


def check_torch() -> None:
    """Raises ImportError if torch is too old, as where pip was told to install no dependencies."""
    import torch  # not before it is known whose files these are: theirs may do without

    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        oldest = ".".join(map(str, TORCH))
        raise ImportError(
            f"fastinit needs torch {oldest} or later, but this is torch {torch.__version__}: "
            f"pip install 'torch>={oldest}'"
        )


def reinstall() -> str:
    """The command that builds and installs this distribution again, from where it came."""
    if in_source_tree():
        return f"pip install -e {_FOLDER.parent}"
    # Without the cache, where pip may keep what it built when there was no compiler.
    return f"pip install --no-cache-dir --force-reinstall --no-deps {_origin() or DISTRIBUTION}"


def in_source_tree() -> bool:
    """Whether this is the folder in a clone or an unpacked source distribution."""
    return (_FOLDER.parent / "csrc" / "stream.h").exists()


def elsewhere() -> Path | None:
    """Another folder on the path that has this package with its native module, or None."""
    for entry in map(Path, sys.path):
        spec = PathFinder.find_spec("fastinit", [str(entry)])
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).resolve().parent
        native = (folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES)
        if folder != _FOLDER and any(path.exists() for path in native):
            return folder
    return None


def _origin() -> str | None:
    """The folder or file that pip installed from, None if that was an index or is unknown."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlsplit(json.loads(text)["url"]) if text else None
    return unquote(url.path) if url is not None and url.scheme == "file" else None


check()
check_torch()
