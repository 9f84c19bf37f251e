"""Files that are written whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .messages import shown


def new_file(what: str, path: object) -> Path:
    """The path of a file to write, asked for before the work is done that it shall hold. what: the op and the argument, for errors.

    Raises TypeError for what is no path, ValueError for one without a name, FileNotFoundError where its folder is none and
    IsADirectoryError where it is one itself.
    """
    file = _named(what, path)
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{what}: expected a file in a folder that exists, got {str(path)!r}")
    if file.is_dir():
        raise IsADirectoryError(f"{what}: expected a file, got the folder {str(path)!r}")
    return file


def old_file(what: str, path: object) -> Path:
    """The path of a file to read. Raises as `new_file`, and FileNotFoundError where no file is."""
    file = _named(what, path)
    if not file.is_file():
        raise FileNotFoundError(f"{what}: expected a file, got {str(path)!r}")
    return file


def _named(what: str, path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{what}: expected a path, got {shown(path)}")
    if not Path(path).name:
        raise ValueError(f"{what}: expected the path of a file, got {str(path)!r}")
    return Path(path)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, then give it its own: whoever reads `path` finds all of it, old or new.

    Raises OSError, which names `path`.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except RuntimeError as error:  # of torch.save, on a full disk
        raise OSError(f"{path} could not be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left of `path`, half-written; for who holds its folder (`locked`)."""
    for temporary in path.parent.glob(f".{glob.escape(path.stem)}.{'[0-9a-f]' * 8}{glob.escape(path.suffix)}"):
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


_HELD = set[int]()
"""The files of the locks of this process."""


def _leave_locks() -> None:
    """A worker that is forked while its parent holds a lock would hold it, too, for some seconds longer than a parent that is killed."""
    for file in _HELD:
        os.close(file)
    _HELD.clear()


os.register_at_fork(after_in_child=_leave_locks)


@contextmanager
def locked(what: str, folder: Path) -> Iterator[None]:
    """Make a folder, and hold it against other processes that lock it too; the lock goes with the process that holds it.

    what: the op and the argument, for errors. A file system without locks holds nothing.
    Raises ValueError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    _HELD.add(file)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{what}: expected one that no other run is filling, got {str(folder)!r}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        yield
    finally:
        if file in _HELD:  # a forked process has closed it
            _HELD.remove(file)
            os.close(file)
