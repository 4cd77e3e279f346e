"""Writing files so that a failure leaves nothing behind."""

from __future__ import annotations

import uuid
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file through a temporary one in the same folder, so that a failure leaves nothing behind.

    Raises:
        OSError: the folder is missing, not writable or full.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
