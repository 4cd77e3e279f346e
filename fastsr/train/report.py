"""What a run tells: a progress bar, CSV files, tensorboard, and wandb where it is installed and asked for."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from fastsr._files import atomic_write
from fastsr.errors import CheckpointError
from fastsr.evaluate import EvalResult
from fastsr.train.recipe import Recipe

__all__ = ["Report"]

log = logging.getLogger(__name__)
_SLOW_LOADER = 0.1  # share of the time that steps may wait for the loader before the log says so


class Report:
    """The reports of one process; only the first one writes. A context.

    `training.csv` has a row every `log_every` steps (the mean loss since the last row, and the share of the time that
    steps waited for the loader), `validation.csv` one for each folder and validation. Rows after the step that a run
    continues from are removed.
    """

    def __init__(self, recipe: Recipe, first: bool, step: int) -> None:
        self.first, self.every, self.batch = first, recipe.log_every, recipe.optimizer.batch
        self._losses: list[float] = []
        self._since, self._waited, self._warned = time.monotonic(), 0.0, False
        self._shown: dict[str, str] = {}
        self._board: Any = None
        self._wandb: Any = None
        self.bar = tqdm(total=recipe.schedule.steps, initial=step, unit="step", disable=None if first else True)
        if not first:
            return
        folder = recipe.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
            columns = ("step", "loss", "lr", "images_per_s", "minutes", "waiting")
            self._training = _Table(folder / "training.csv", columns, step)
            self._validation = _Table(folder / "validation.csv", ("step", "folder", "psnr_y", "ssim_y"), step)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
        self._board = _tensorboard(folder, step)
        self._wandb = _wandb(recipe)

    def step(self, step: int, loss: float, rate: float, minutes: float, waited: float) -> None:
        """After each step; `waited` counts the seconds that steps have waited for the loader so far."""
        self.bar.update(1)
        self._losses.append(loss)
        if step % self.every or not self.first:
            return
        now = time.monotonic()
        mean = sum(self._losses) / len(self._losses)
        passed = max(now - self._since, 1e-9)
        speed, waiting = len(self._losses) * self.batch / passed, min((waited - self._waited) / passed, 1.0)
        self._losses, self._since, self._waited = [], now, waited
        self._training.add(step, f"{mean:.6g}", f"{rate:.6g}", f"{speed:.1f}", f"{minutes:.3f}", f"{waiting:.3f}")
        self._send(step, {"loss": mean, "lr": rate, "images_per_s": speed, "waiting": waiting})
        if waiting > _SLOW_LOADER and not self._warned:
            self._warned = True
            log.warning(
                "steps wait for images %.0f %% of the time: raise data.workers or data.cache_mib", 100 * waiting
            )
        self._shown |= {"loss": f"{mean:.5f}", "images/s": f"{speed:.0f}"}
        self.bar.set_postfix(self._shown)

    def validation(self, step: int, scores: dict[str, EvalResult]) -> None:
        """After each validation."""
        for name, score in scores.items():
            self._validation.add(step, name, f"{score.psnr:.4f}", f"{score.ssim:.5f}")
            self._send(step, {f"{name}/psnr_y": score.psnr, f"{name}/ssim_y": score.ssim})
            self._shown[name] = f"{score.psnr:.3f} dB"
            self.say(f"step {step}: {name} PSNR-Y {score.psnr:.3f} dB, SSIM-Y {score.ssim:.4f}")
        self.bar.set_postfix(self._shown)
        self._since, self._losses = time.monotonic(), []

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.first:
            self.bar.write(text)

    def _send(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Table:
    """A CSV file that grows by whole lines."""

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path = path
        kept: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                head, *rows = list(csv.reader(file)) or [[]]
            whole = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
            kept = [[row.get(column, "") for column in columns] for row in whole if int(row["step"]) <= step]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([columns, *kept])
        atomic_write(path, text.getvalue().encode())  # a full disk must not cost the rows that are there

    def add(self, *row: object) -> None:
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(row)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error.strerror or error)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed; the CSV files hold the same numbers")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)


def _wandb(recipe: Recipe) -> Any:
    if recipe.wandb is None:
        return None
    try:
        import wandb
    except ImportError:
        log.warning("wandb=%s is asked for and wandb is not installed: pip install wandb", recipe.wandb)
        return None
    return wandb.init(project=recipe.wandb, name=recipe.name, id=recipe.name, resume="allow", config=recipe.as_dict())
