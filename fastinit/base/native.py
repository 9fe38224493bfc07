"""Native: the module ``fastinit._native``, built from csrc/, or why it is not there."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parents[1]


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
    return module, None


module, missing = _found()
