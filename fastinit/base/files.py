"""Files: a file is replaced when all of the new one is on disk; until then it is what it was.

What is not whole has a name that no other writer has, and says on which machine it is being written, so
that what a killed run left can be told from what somebody else is writing.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

_PARTIAL = re.compile(r"\..+\.fastinit-(?P<machine>[0-9a-f]{16})-[0-9a-f]{16}\.partial", re.DOTALL)


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to be written, which takes the place of that at ``path`` when the block ends well.

    It keeps the mode of the one that it replaces. Of a symbolic link that is what it leads to; what is
    no file but a device or a pipe is written as it is.

    Raises:
        OSError: what the system says, such as a full disk; it names ``path``, where nothing has changed.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with named(path, target), open(target, "wb") as file:
            yield file
        return
    partial = partial_path(target)
    try:
        with named(path, partial):
            with open(partial, "xb") as file:
                lock(file.fileno())
                if target.exists():
                    os.chmod(partial, target.stat().st_mode)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


@contextmanager
def named(path: str | PathLike[str], partial: Path) -> Iterator[None]:
    """In the block, what the system says of a file, or of none, names the one that it is or will be."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from None
        raise


def write_text(path: str | PathLike[str], text: str) -> None:
    """Writes a file as :func:`replacing` does, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def partial_path(path: Path) -> Path:
    """A name for a file that is not whole, beside it, which nobody else has."""
    return path.with_name(f".{path.name}.fastinit-{_machine()}-{secrets.token_hex(8)}.partial")


def lock(descriptor: int) -> bool:
    """Has a file be known as being written, as long as it is open. False if somebody else writes it.

    Where there are no locks nothing is ever taken for what a killed run left.
    """
    return _try_lock(descriptor) is True


def is_written(descriptor: int) -> bool:
    """Whether somebody else writes a file; if not it is known as being written, as long as it is open.

    Where there are no locks nobody knows, and it is not.
    """
    return _try_lock(descriptor) is False


def _try_lock(descriptor: int) -> bool | None:
    """Whether it is locked for this process now, or else for another; None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While in force, no other run of this machine writes to the directory.

    Another machine may not see it, or a file system have no such lock: then two runs write the same
    files under names of their own, and each puts whole ones in place.

    Raises:
        OSError: another run does.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if is_written(descriptor):
            raise OSError(f"{folder} is being written to by another run")
        yield
    finally:
        os.close(descriptor)


def remove_left(folder: Path) -> list[Path]:
    """Removes what killed runs of this machine left in a directory.

    Returns:
        What may be being written by another machine, or was left before this one was last started.
    """
    others = []
    for path in sorted(folder.iterdir()):
        found = _PARTIAL.fullmatch(path.name)
        if found is None or path.is_symlink() or not path.is_file():
            continue
        if found["machine"] != _machine():
            others.append(path)
            continue
        with suppress(FileNotFoundError):  # it has become whole
            descriptor = os.open(path, os.O_RDWR)
            try:
                if lock(descriptor):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
    return others


def sync_directory(directory: Path) -> None:
    """Has the names of a directory's files on disk, where a system can do that."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # a directory cannot be opened, as on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _machine() -> str:
    """Of this machine, from its start on: as far as its locks reach."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = platform.node()
    return blake2b(text.encode(), digest_size=8).hexdigest()
