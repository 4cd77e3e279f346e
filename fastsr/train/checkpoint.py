"""The state of a run on disk: whole or not at all, checked when read, the last few kept.

A file is a magic, the SHA-256 of what follows, and a `torch.save` that is read with weights_only.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import uuid
from pathlib import Path
from typing import Any

import torch

from fastsr.errors import CheckpointError

__all__ = ["list_states", "load_latest", "read_state", "write_state"]

_MAGIC = b"fastsr-state-1\n"
_DIGEST = 32
_NAME = re.compile(r"step_(\d+)\.state")

log = logging.getLogger(__name__)


def write_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes the state of a step and removes all but the `keep` newest.

    Raises:
        CheckpointError: it cannot be written, on a full disk for example; what was there stays.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    target = folder / f"step_{step:08d}.state"
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for part in (_MAGIC, hashlib.sha256(body).digest(), body):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"the checkpoint {target} cannot be written ({error.strerror or error}); "
            "those before it are kept: make room, and start again to continue"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for old in list_states(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return target


def list_states(folder: Path) -> list[Path]:
    """The states of a run, the oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.state") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read_state(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if the file is cut short or altered."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    body = memoryview(data)[len(_MAGIC) + _DIGEST :]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[len(_MAGIC) :][:_DIGEST]:
        raise CheckpointError(f"{path} is damaged: its checksum does not fit")
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return state


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest state that is whole, or None for a new run; the log tells of damaged ones.

    Raises:
        CheckpointError: there are states and none is whole.
    """
    states = list_states(folder)
    for path in reversed(states):
        try:
            state = read_state(path)
        except CheckpointError as error:
            log.warning("%s; the one before it is taken.", error)
        else:
            return state
    if states:
        raise CheckpointError(f"none of the {len(states)} checkpoints in {folder} is whole; remove them to start anew")
    return None
