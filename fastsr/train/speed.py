"""`fastsr train RECIPE --speed`: whether the loader keeps up with the steps. Writes nothing to the run's folder."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

from fastsr.errors import InputError
from fastsr.train.around import settings
from fastsr.train.loop import Trainer
from fastsr.train.processes import Processes
from fastsr.train.recipe import Recipe

__all__ = ["measure", "text"]

_WARM = 3  # steps and batches that are not timed: kernels are chosen and workers start in them
_ENDLESS = 10**9


def measure(recipe: Recipe, seconds: float = 10.0) -> dict[str, Any]:
    """Images a second of the loader alone, of steps on a batch that is there, and of both together.

    Args:
        seconds: for each of the three.

    Raises:
        InputError: as in `train`, or torchrun started this.
    """
    with settings(recipe.compute), Processes(recipe.compute.device) as processes:
        if processes.world > 1:
            raise InputError("--speed measures one process; start it without torchrun")
        torch.manual_seed(recipe.seed)
        begin = time.perf_counter()
        trainer = Trainer(recipe, processes)
        opened = time.perf_counter() - begin
        batch, rate, parts = recipe.optimizer.batch, recipe.optimizer.lr, recipe.optimizer.accumulate
        batches = iter(trainer.loader(stop=_ENDLESS))
        first = [next(batches) for _ in range(parts)]
        same = itertools.cycle(first)
        _wait(trainer.device)
        alone = _rate(lambda: [next(batches) for _ in range(parts)], seconds, trainer.device)
        steps = _rate(lambda: trainer.train_step(same, rate, False), seconds, trainer.device)
        waited = trainer.waited
        begin = time.perf_counter()
        together = _rate(lambda: trainer.train_step(batches, rate, False), seconds, trainer.device)
        share = (trainer.waited - waited) / (time.perf_counter() - begin)
    return {
        "recipe": recipe.name,
        "batch": batch,
        "patch": recipe.data.patch,
        "workers": recipe.data.workers,
        "images": len(trainer.data.keys),
        "opening_s": opened,
        "loader_images_per_s": batch * alone,
        "step_images_per_s": batch * steps,
        "together_images_per_s": batch * together,
        "waiting": share,
    }


def text(found: dict[str, Any]) -> str:
    """The measurement in words."""
    ratio = found["loader_images_per_s"] / found["step_images_per_s"]
    return (
        f"the loader gives {found['loader_images_per_s']:.0f} images/s with {found['workers']} workers, steps take "
        f"{found['step_images_per_s']:.0f}: {ratio:.1f} times what they need\n"
        f"together {found['together_images_per_s']:.0f} images/s, of the time {found['waiting']:.1%} waiting for images"
    )


def _rate(run: Callable[[], Any], seconds: float, device: torch.device) -> float:
    """Runs a second."""
    for _ in range(_WARM):
        run()
    _wait(device)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        run()
        count += 1
    _wait(device)
    return count / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
