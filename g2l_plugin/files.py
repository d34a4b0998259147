"""Writing files and folders completely or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from loguru import logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def printable(text: str) -> str:
    r"""Writes bytes of file names that are not UTF-8, which no text file may have, as \xe9.

    Examples:
        >>> import os
        >>> from g2l_plugin.files import printable
        >>> print(printable(os.fsdecode(b"caf\xe9.svs")))
        caf\xe9.svs
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def hash_file(file: Path) -> str:
    """Returns a file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush_to_disk(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a text file to disk under a temporary name, and renames it.

    Args:
        path: The file.
        text: Its content.
        errors: How to write what is not Unicode, as in `str.encode`: the name of a file may have
            any bytes, and "surrogateescape" writes these.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)
        flush_to_disk(partial)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` if the block succeeds.

    If the block fails, an existing file at `path` stays, and the temporary file is removed.
    """
    # A unique name: processes of several machines may write the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill, which is renamed to `path` if the block succeeds.

    Only then is an existing folder replaced. If the block fails, the temporary one is removed; that
    of a process that was killed is removed by the next one that writes the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with contextlib.suppress(OSError):  # held, renamed meanwhile, or a file
            if any(left.iterdir()):  # an empty one may have been made just now, and not be held yet
                with _held(left):
                    shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a disk without locks: nobody will remove it
                stack.enter_context(_held(partial))
            yield partial
            partial.chmod(0o755)  # mkdtemp's folders are private to the user
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds a folder during the block, also against this process; raises OSError if it cannot.

    By `flock`, since `lockf` asks for what is opened to be written, which a folder cannot be.
    """
    if fcntl is None:
        raise OSError("no locks")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, part: int | None = None) -> Iterator[None]:
    """Holds a lock during the block, and first waits until no other process holds it.

    The system releases the lock of a process that dies, on a network disk too.

    Args:
        path: The file of the lock, which is made and stays.
        part: Locks only this part, from 0: others may hold other parts. None locks all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if fcntl is not None:
            # Not `flock`, which child processes inherit, and may hold for longer.
            span = (0, 0) if part is None else (1, part)  # length (0 is all) and start
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *span)
            except (BlockingIOError, PermissionError):
                logger.warning(f"Another process is at work in {path.parent}: waiting for its end.")
                fcntl.lockf(file, fcntl.LOCK_EX, *span)
            except OSError as error:
                logger.warning(
                    f"{path} cannot be locked ({error}): the disk has no locks. Let only one "
                    f"process at a time work in {path.parent}."
                )
        yield
