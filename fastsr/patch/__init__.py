"""`accelerate`: fastsr's parts in a network that somebody else's code built."""

from fastsr.patch.swap import AccelerateReport, accelerate

__all__ = ["AccelerateReport", "accelerate"]
