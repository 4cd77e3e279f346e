"""What a run tells: a progress bar (lines where there is no terminal), CSV files, tensorboard, and wandb where it is
installed and asked for. Only the CSV files are indispensable: the others may fail in the middle and the run goes on."""

from __future__ import annotations

import csv
import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

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
        self._senders: dict[str, _Sender] = {}
        self._hook = threading.excepthook
        self.steps, self.max_minutes = recipe.schedule.steps, recipe.schedule.max_minutes
        self.bar = tqdm(total=self.steps, initial=step, unit="step", disable=None if first else True)
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
        for sender in (_tensorboard(folder, step), _wandb(recipe)):
            if sender is not None:
                self._senders[sender.name] = sender

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
        self._shown |= {"loss": f"{mean:.5f}", "images/s": f"{speed:.1f}"}
        self.bar.set_postfix(self._shown)
        if self.bar.disable:
            self.say(f"step {step} of {self.steps}: {self._line()}, {self._left(step, minutes, speed)} left")

    def _line(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._shown.items())

    def _left(self, step: int, minutes: float, speed: float) -> timedelta:
        """How long the run still takes, by the steps or by its limit in minutes."""
        seconds = (self.steps - step) * self.batch / max(speed, 1e-9)
        if self.max_minutes is not None:
            seconds = min(seconds, 60 * max(self.max_minutes - minutes, 0.0))
        return timedelta(seconds=round(seconds))

    def validation(self, step: int, scores: dict[str, EvalResult], seconds: float) -> None:
        """After each validation, which took `seconds`: they count for no step."""
        for name, score in scores.items():
            self._validation.add(step, name, f"{score.psnr:.4f}", f"{score.ssim:.5f}")
            self._send(step, {f"{name}/psnr_y": score.psnr, f"{name}/ssim_y": score.ssim})
            self._shown[name] = f"{score.psnr:.3f} dB"
            self.say(f"step {step}: {name} PSNR-Y {score.psnr:.3f} dB, SSIM-Y {score.ssim:.4f}")
        self.bar.set_postfix(self._shown)
        self._since += seconds

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.first:
            self.bar.write(text)
            sys.stdout.flush()  # or a log file would show it an hour later

    def _send(self, step: int, values: dict[str, float]) -> None:
        for name, sender in list(self._senders.items()):
            try:
                sender.send(values, step)
            except Exception as error:  # a full disk or a lost connection; each package has errors of its own
                del self._senders[name]
                log.warning("%s gets no more figures (%s); the CSV files go on", name, _first_line(error))

    def _quiet(self, failed: threading.ExceptHookArgs) -> None:
        """Tensorboard writes in a thread: a full disk there is told by `_send`, without a traceback."""
        if not issubclass(failed.exc_type, OSError):
            self._hook(failed)

    def __enter__(self) -> Report:
        threading.excepthook = self._quiet
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.close()
        for name, sender in self._senders.items():
            try:
                sender.close()
            except Exception as failed:
                log.warning("%s could not be closed (%s)", name, _first_line(failed))
        threading.excepthook = self._hook


class _Sender(NamedTuple):
    """Something beside the CSV files that takes figures."""

    name: str
    send: Callable[[dict[str, float], int], Any]
    close: Callable[[], Any]


class _Table:
    """A CSV file that grows by whole lines."""

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path = path
        self._failed = False
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
            if not self._failed:
                log.warning("rows of %s are lost: %s", self.path, error.strerror or error)
            self._failed = True


def _tensorboard(folder: Path, step: int) -> _Sender | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed; the CSV files hold the same numbers")
        return None
    try:
        board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
    except OSError as error:
        log.warning("tensorboard's files cannot be written (%s); the CSV files hold the same numbers", error)
        return None

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    return _Sender("tensorboard", send, board.close)


def _wandb(recipe: Recipe) -> _Sender | None:
    if recipe.wandb is None:
        return None
    try:
        import wandb
    except ImportError:
        log.warning("wandb=%s is asked for and wandb is not installed: pip install wandb", recipe.wandb)
        return None
    try:
        run = wandb.init(
            project=recipe.wandb, name=recipe.name, id=recipe.name, resume="allow", config=recipe.as_dict()
        )
    except Exception as error:  # no login, no network: its errors have no common type
        log.warning(
            "wandb=%s does not start (%s); the CSV files hold the same numbers", recipe.wandb, _first_line(error)
        )
        return None
    return _Sender("wandb", lambda values, step: run.log(values, step=step), run.finish)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
