"""The accuracy of GELU in the GPU kernels."""

from __future__ import annotations

from types import TracebackType

from fastsr import _env
from fastsr.errors import InputError

ACCURACIES = ("default", "exact", "fast")

_accuracy: str = _env.gelu()


class set_gelu:  # lower case: it is used like fastsr.backend
    """Set the accuracy of GELU in the GPU kernels, process-wide (docs/gelu.md has the errors).

    "exact" evaluates the error function to float32's precision. "default" is as accurate as the dtype of the map can
    show: the same in float32, polynomials in float16 and bfloat16. "fast" uses the GPU's approximate tanh. Gradients
    are those of the exact GELU in all three. As a call it takes effect from then on; as a context manager it also
    restores what was set before. CPU kernels and the reference path have one GELU and ignore it.

    Args:
        accuracy: "default", "exact" or "fast".

    Raises:
        InputError: `accuracy` is none of these.
    """

    def __init__(self, accuracy: str) -> None:
        global _accuracy
        if accuracy not in ACCURACIES:
            raise InputError(f"the accuracy of GELU is {accuracy!r}; accepted are {', '.join(ACCURACIES)}")
        self._previous = _accuracy
        _accuracy = accuracy

    def __enter__(self) -> set_gelu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _accuracy
        _accuracy = self._previous


def current_gelu() -> str:
    """The accuracy in force.

    Raises:
        InputError: FASTSR_GELU names no accuracy.
    """
    if _accuracy not in ACCURACIES:
        raise InputError(f"FASTSR_GELU is {_accuracy!r}; accepted are {', '.join(ACCURACIES)}")
    return _accuracy


def code() -> int:
    """The accuracy in force as the compiled kernels number it."""
    return ACCURACIES.index(current_gelu())
