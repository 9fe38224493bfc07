"""Programs of tests in a process of their own, forked from one that has imported torch.

What is proved is what a new interpreter would prove: the package itself is imported by the program, with
its environment, directory and path. Only torch is there already, which takes seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

CONTEXT: Any = get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    CONTEXT.set_forkserver_preload(["torch"])


def _act(
    code: str,
    arguments: list[str],
    cwd: Path,
    environment: dict[str, str],
    path: list[str],
    outputs: list[str],
) -> None:
    """In the process: its output goes where it is asked for, then the code is the main program."""
    for number, file in enumerate(outputs, 1):
        descriptor = os.open(file, os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    sys.argv[:] = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def run(
    code: str,
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
    path: list[str] | None = None,
    stdout: str | None = None,
) -> CompletedProcess[str]:
    """What subprocess.run gives of ``python -c CODE ARGUMENTS``; its output may go to a file."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        given = list(map(str, arguments))
        process = CONTEXT.Process(
            target=_act,
            args=(
                textwrap.dedent(code),
                given,
                cwd or Path.cwd(),
                dict(env),
                sys.path if path is None else path,
                [stdout or out.name, err.name],
            ),
        )
        process.start()
        process.join()
        status = process.exitcode
        process.close()
        return CompletedProcess(["-c", *given], status, out.read(), err.read())


def compiling(cache: Path, program: str, *arguments: str) -> str:
    """What a program says that compiles with Triton, in a process that does not interpret it.

    Args:
        cache: an empty folder for what is compiled.
        program: a file, or a module.
    """
    code = """
        import runpy, sys
        run = runpy.run_path if sys.argv[1].endswith(".py") else runpy.run_module
        del sys.argv[0]
        run(sys.argv[0], run_name="__main__")
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = run(code, program, *arguments, env=environment | {"TRITON_CACHE_DIR": str(cache)})
    assert done.returncode == 0, done.stderr
    return done.stdout
