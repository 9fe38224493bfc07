"""Native: the module ``fastinit._native``, built from csrc/, or why it is not used.

Its interface is what ``_native.pyi`` says. A build keeps the digest of that text, and is used with that
text alone: in a folder that was pulled and not built anew, Python would call what is not there.
"""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parents[1]


def is_of(module: ModuleType, stub: Path) -> bool:
    """Whether a module was built for the interface that a stub says.

    Bundlers leave stubs out; what they bundle was together before.
    """
    if not stub.exists():
        return True
    built: str | None = getattr(module, "interface", None)
    return built == hashlib.sha256(stub.read_bytes()).hexdigest()


def _found() -> tuple[ModuleType | None, str | None]:
    try:
        module = import_module("fastinit._native")  # whose error says what is missing

        # The finder of an editable install offers its own where this folder has none.
        if not os.path.samefile(Path(module.__file__ or "").parent, _PACKAGE):
            raise ImportError(f"it was not built here, and {module.__file__} is another copy's")
    except ImportError as error:
        note = _PACKAGE / "_native_missing.txt"
        why = note.read_text().strip() if note.exists() else str(error)
        return None, f"the native module is not there: {why}"
    if not is_of(module, _PACKAGE / "_native.pyi"):
        return (
            None,
            "the native module was not built from this source, but from an older or newer one",
        )
    return module, None


module, missing = _found()
