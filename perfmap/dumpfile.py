"""The file of a jitdump, as perf expects it of a process: its name, its place, its mark.

perf hears of the file because the process maps it executable, and takes it for a dump because it
is called `jit-PID.dump`. It writes an ELF file a function beside it, so it has a directory of its
own: like LLVM's, Java's and V8's, `.debug/jit/NAME-DATE.UNIQUE` in $JITDUMPDIR or at home.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from contextlib import suppress
from mmap import PAGESIZE, PROT_EXEC, PROT_READ
from pathlib import Path

from perfmap.errors import PerfMapError
from perfmap.memory import map_private
from perfmap.sharedfile import CLOCK_GRAIN, process_start

__all__ = ["DumpFile", "run_directory", "runs_directory"]

FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def runs_directory() -> Path:
    """Where the directories of all runs are, whether or not there are any: `.debug/jit` in
    $JITDUMPDIR or at home, as an absolute path.

    Raises PerfMapError if there is no home.
    """
    try:
        return Path(os.environ.get("JITDUMPDIR") or Path.home(), ".debug", "jit").absolute()
    except RuntimeError:  # no HOME, and a user without a name, as containers have
        raise PerfMapError(
            "no place for what perf reads: this user has no home; "
            "set JITDUMPDIR to a directory that can be written"
        ) from None
    except OSError as error:  # the current directory, which a relative one is in
        raise PerfMapError(
            f"no place for what perf reads: no current directory ({error.strerror}); "
            "set JITDUMPDIR to the absolute path of a directory that can be written"
        ) from error


def run_directory() -> Path:
    """A new directory of this run, mode 0700, in `runs_directory()`.

    It is locked (flock(2), shared) as long as this process or a forked child of it lives: so that
    whoever cleans up sees that it is in use, also from where the process has another number.

    Raises PerfMapError if it cannot be made.
    """
    parent = runs_directory()
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=time.strftime("jit-listeners-%Y%m%d."), dir=parent))
        with suppress(OSError):  # a file system without locks
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return path
    except OSError as error:
        raise PerfMapError(
            f"cannot make a directory for this run: {error}; "
            "set JITDUMPDIR to a directory that can be written"
        ) from error


class DumpFile:
    """A new file at `path`, mode 0600, that begins with `header` and is marked for perf.

    What a dead process of the same number has left at `path` is replaced. A method that raises,
    always PerfMapError, leaves none of its bytes in the file.
    """

    def __init__(self, path: Path, header: bytes) -> None:
        self.path = path
        self._descriptor: int | None = None
        try:
            _remove_stale(path)
            self._descriptor = os.open(path, FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            self._status = os.fstat(self._descriptor)
            self._size = 0
            self.write(header)
            _mark(self._descriptor)
        except FileExistsError:
            raise PerfMapError(
                f"{str(path)!r} is there already: remove it, or give each writer its own directory"
            ) from None
        except (OSError, ValueError) as error:
            self._abandon()
            reason = getattr(error, "strerror", None) or str(error)
            raise PerfMapError(
                f"cannot make {str(path)!r} and map it executable: {reason}; set JITDUMPDIR to a "
                "directory that can be written, on a file system not mounted noexec"
            ) from error
        except PerfMapError:
            self._abandon()
            raise

    def is_current(self) -> bool:
        """Whether the file can be written and has not been deleted.

        Daemons close every descriptor: then the file, of which perf knows, is opened again.
        """
        if self._descriptor is None:
            return False
        if status := self._own_status():
            return status.st_nlink > 0
        with suppress(OSError):
            descriptor = os.open(self.path, FLAGS)
            if os.path.samestat(os.fstat(descriptor), self._status):
                self._descriptor = descriptor
                return True
            os.close(descriptor)
        return False

    def _own_status(self) -> os.stat_result | None:
        """None if the descriptor is not ours any more: a program may close all there are."""
        if self._descriptor is None:
            return None
        try:
            status = os.fstat(self._descriptor)
        except OSError:
            return None
        return status if os.path.samestat(status, self._status) else None

    def write(self, data: bytes) -> None:
        """Append `data` with one write, so that a killed program leaves whole records."""
        assert self._descriptor is not None
        try:
            count = os.write(self._descriptor, data)
            if count < len(data):
                os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            raise self._failure(error.strerror) from error
        if count < len(data):
            raise self._failure(f"it took {count} of {len(data)} bytes")
        self._size += count

    def close(self) -> None:
        """Close the file. Its mark stays: perf may begin to record later."""
        if self._descriptor is not None and self._own_status() is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def __del__(self) -> None:
        with suppress(AttributeError):  # __init__ has raised
            self.close()

    def _abandon(self) -> None:
        if self._descriptor is not None:
            self.close()
            with suppress(OSError):
                self.path.unlink()

    def _failure(self, reason: str | None) -> PerfMapError:
        return PerfMapError(
            f"cannot write {str(self.path)!r}: {reason}; "
            "make room on its file system, or raise the limit on file sizes"
        )


def _mark(descriptor: int) -> None:
    """Map the file's first page executable, for as long as the process lives."""
    map_private(0, PAGESIZE, PROT_READ | PROT_EXEC, 0, descriptor)


def _remove_stale(path: Path) -> None:
    """Remove a file that was last written before this process began."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_mtime < process_start() - CLOCK_GRAIN:
            path.unlink()
