"""The errors fastsr raises on purpose.

Each message is one sentence that names what was given, what is accepted and what to do. The command line
prints that sentence and exits with status 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "FastsrError",
    "ImageError",
    "InputError",
    "MissingPackageError",
    "TrainingError",
    "UnknownModelError",
]


class FastsrError(Exception):
    """Base of every error that fastsr raises on purpose."""


class InputError(FastsrError, ValueError):
    """An argument has a wrong shape, dtype, layout or value."""


class BackendError(FastsrError, RuntimeError):
    """A forced backend cannot run an operator on the tensors it was given."""


class CheckpointError(FastsrError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class UnknownModelError(FastsrError, KeyError):
    """No network has that name."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0]) if self.args else ""


class ImageError(FastsrError, OSError):
    """An image cannot be read, written or processed."""


class MissingPackageError(FastsrError, ImportError):
    """An optional package is needed and not installed."""


class TrainingError(FastsrError, RuntimeError):
    """A training run cannot go on; what it has reached is on disk."""
