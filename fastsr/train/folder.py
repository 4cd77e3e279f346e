"""The folder of a run: for one run at a time, and without what an interrupted write left behind."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from types import TracebackType
from typing import IO

from fastsr.errors import CheckpointError, InputError

try:
    import fcntl
except ImportError:  # not on Windows: two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Claim"]

_LEFTOVERS = ".*.tmp"  # temporary files of writes that a kill interrupted


class Claim:
    """A run's hold on its folder, which ends with the process however that ends. A context.

    Args:
        folder: the run's folder; it need not exist.
        wanted: False in all processes but the one that writes.
    """

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.folder, self.wanted = folder, wanted
        self._file: IO[bytes] | None = None

    def take(self, make: bool) -> None:
        """Takes the folder if it is there, and with `make` in any case.

        Raises:
            InputError: another process trains there.
            CheckpointError: the folder cannot be made or written.
        """
        if not self.wanted or self._file is not None or not (make or self.folder.is_dir()):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / ".lock").open("ab")
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written: {error.strerror or error}") from error
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a worker would inherit it
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # any other: a file system without locks
                    raise InputError(
                        f"another process trains in {self.folder}; wait for it, or train under another name"
                    ) from error
        for path in self.folder.glob(_LEFTOVERS):
            with contextlib.suppress(OSError):
                path.unlink()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
