"""The learning rate as a function of the step, and of the time where a run has a limit in minutes."""

from __future__ import annotations

import math

from fastsr.train.recipe import Schedule

__all__ = ["learning_rate", "progress"]


def progress(schedule: Schedule, step: int, minutes: float) -> float:
    """How much of a run is done, 0..1: by steps, or by minutes where they are limited and further on."""
    done = step / schedule.steps
    if schedule.max_minutes is not None:
        done = max(done, minutes / schedule.max_minutes)
    return min(done, 1.0)


def learning_rate(schedule: Schedule, base: float, step: int, minutes: float = 0.0) -> float:
    """The rate of step `step` (from 0), `minutes` after the start."""
    if step < schedule.warmup:
        return base * (step + 1) / (schedule.warmup + 1)
    if schedule.name == "step":
        assert schedule.every is not None
        return base * schedule.gamma ** int(progress(schedule, step, minutes) * schedule.steps / schedule.every + 1e-9)
    start = schedule.warmup / schedule.steps
    done = (progress(schedule, step, minutes) - start) / (1 - start)
    low = min(schedule.min_lr, base)
    return low + (base - low) * (1 + math.cos(math.pi * max(done, 0.0))) / 2
