"""A folder that one process at a time works in."""

import fcntl
import json
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from psaq.errors import PsaqError

LOCK_FILE = "run.lock"
_held: "weakref.WeakValueDictionary[Path, FolderLock]" = weakref.WeakValueDictionary()


class FolderLock:
    """A folder held by this process until `release`, or until the object or the process is gone, however it ends: the
    system itself lets go of a dead process's lock, whatever its file still says."""

    def __init__(self, folder: Path, work: str):
        """
        Args:
            work: what the holder does, for the words of those that are refused.

        Raises:
            PsaqError: another process holds the folder, or it cannot be written to.
        """
        self.path = (folder / LOCK_FILE).resolve()
        self._file = _opened(self.path)
        _write(self._file, {"process": os.getpid(), "machine": socket.gethostname(), "work": work})
        self.release = weakref.finalize(self, _let_go, self._file, self.path)


def held(folder: Path, work: str) -> FolderLock:
    """This process's lock of a folder: the one that it has, or a new one. Raises PsaqError as `FolderLock`."""
    path = (folder / LOCK_FILE).resolve()
    lock = _held.get(path)
    if lock is None or not lock.release.alive:
        lock = _held[path] = FolderLock(folder, work)
    return lock


def _opened(path: Path) -> Any:
    """The lock's file, locked. Its last holder may have removed it between our opening and our locking it."""
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise PsaqError(f"{path}: could not be written ({error.strerror}); name another folder") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise PsaqError(
                f"{path.parent}: {holder} works in it; wait for it, stop it, or name another folder"
            ) from None
        except OSError:  # a file system without locks: then nobody can be refused
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _write(file: Any, holder: dict[str, Any]) -> None:
    """Who holds the folder, for the words of those that are refused: on a full disk they do without."""
    with suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(holder).encode())


def _holder(text: str) -> str:
    try:
        known = json.loads(text)
        return f"process {known['process']} on {known['machine']} ({known['work']})"
    except (ValueError, KeyError, TypeError):  # it has not written its name yet
        return "another process"


def _let_go(file: Any, path: Path) -> None:
    path.unlink(missing_ok=True)
    file.close()
