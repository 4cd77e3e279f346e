"""The training loop."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastsr._files import atomic_write
from fastsr.errors import InputError, TrainingError
from fastsr.models import SuperResolutionNet, save
from fastsr.train.around import Signals, Stopped, in_words, settings
from fastsr.train.checkpoint import list_states, load_latest, write_state
from fastsr.train.data import make_loader, open_pairs
from fastsr.train.folder import Claim
from fastsr.train.processes import Processes
from fastsr.train.recipe import Recipe, describe_differences
from fastsr.train.report import Report
from fastsr.train.schedule import learning_rate, progress
from fastsr.train.start import make_network, make_optimizer
from fastsr.train.validate import Validator

__all__ = ["Trainer", "train"]

log = logging.getLogger(__name__)
_CHARBONNIER = 1e-3  # epsilon, in units of white = 1


def train(recipe: Recipe) -> Path:
    """Trains by a recipe, or continues the run in its folder; returns the folder.

    Ctrl-C and SIGTERM end it after the step at hand, with a checkpoint; before the first step, at once and without.

    Raises:
        InputError: the recipe does not fit the data, the device or the run that is there, or a run is going on there.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: the loss or the weights are not finite, memory ran out, or a worker was killed.
    """
    try:
        with settings(recipe.compute), Processes(recipe.compute.device) as processes, Signals() as signals, in_words():
            torch.manual_seed(recipe.seed)
            if not processes.first:  # or each process would tell the same
                logging.getLogger("fastsr").setLevel(logging.ERROR)
            with Claim(recipe.folder, processes.first) as claim:
                claim.take(make=False)
                trainer = Trainer(recipe, processes)
                trainer.resume()
                signals.running = True
                claim.take(make=True)
                trainer.run(signals)
    except Stopped:
        print("stopped before the first step: there was nothing to save", flush=True)
    return recipe.folder


class Trainer:
    """Everything that a run consists of, on one process."""

    def __init__(self, recipe: Recipe, processes: Processes) -> None:
        self.recipe, self.processes = recipe, processes
        share = processes.world * recipe.optimizer.accumulate
        if recipe.optimizer.batch % share:
            raise InputError(
                f"optimizer.batch is {recipe.optimizer.batch}; it must be a multiple of {share}, the number of "
                "processes times optimizer.accumulate"
            )
        self.device = processes.device
        self.net = make_network(recipe.model).to(self.device)
        if recipe.data.patch < self.net.min_size:
            raise InputError(
                f"data.patch is {recipe.data.patch}; {recipe.model.name} needs at least {self.net.min_size}"
            )
        self.validator = Validator(recipe, self.net.min_size)
        self._found = self._look_for_state()  # before the images are read: that may take long, and a mistake shows here
        self.data = self._open_data()
        self.optimizer = make_optimizer(recipe, self.net)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.compute.precision == "fp16")
        self.ema = None
        if recipe.ema is not None:
            self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.step, self.minutes, self.best = 0, 0.0, float("-inf")
        self.waited = 0.0  # seconds that steps have waited for the loader
        self.model: nn.Module = self.net
        if recipe.compute.compile:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        if processes.world > 1:
            self.model = DistributedDataParallel(self.model)

    def _open_data(self) -> Any:
        """The first process makes the LR images, then the others find them."""
        first, recipe = self.processes.first, self.recipe
        data = open_pairs(recipe.data, recipe.model.scale, recipe.seed, make=first)
        self.processes.wait()
        if not first:
            data.fill()
        return data

    @property
    def averaged(self) -> SuperResolutionNet:
        """The network to validate and to give away."""
        return self.net if self.ema is None else self.ema.module  # type: ignore[return-value]

    def state(self) -> dict[str, Any]:
        """All that a bit-exact continuation needs; collective, because each process has random states of its own."""
        states = self.processes.gather(torch.get_rng_state())
        cuda = self.processes.gather(torch.cuda.get_rng_state(self.device)) if self.device.type == "cuda" else []
        return {
            "recipe": self.recipe.as_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "best": self.best,
            "net": self.net.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": states,
            "random_cuda": cuda,
            "bad_images": sorted(self.data.bad),
        }

    def _look_for_state(self) -> dict[str, Any] | None:
        """The newest whole checkpoint of the run's folder; InputError if that run had another recipe.

        The first process reads it for all: on other nodes the folder may not be there.
        """
        state = self.processes.share(load_latest(self.recipe.folder) if self.processes.first else None)
        different = describe_differences(state["recipe"], self.recipe.as_dict()) if state is not None else []
        if different:
            raise InputError(
                f"{self.recipe.folder} holds a run of another recipe ({'; '.join(different)}); "
                "train with the recipe it has, or under another name"
            )
        return state

    def resume(self) -> None:
        """Continues from the newest whole checkpoint of the run's folder, if there is one."""
        state, self._found = self._found, None
        if state is None:
            return
        self.net.load_state_dict(state["net"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.minutes, self.best = state["step"], state["minutes"], state["best"]
        log.info("continuing the run in %s after step %d", self.recipe.folder, self.step)
        self.data.bad.update(state["bad_images"])
        rank = self.processes.rank
        if rank < len(state["random"]):
            torch.set_rng_state(state["random"][rank])
        if self.device.type == "cuda" and rank < len(state["random_cuda"]):
            torch.cuda.set_rng_state(state["random_cuda"][rank], self.device)

    def run(self, signals: Signals) -> None:
        """Trains to the end, or until a signal."""
        recipe, processes = self.recipe, self.processes
        started = time.monotonic() - 60 * self.minutes
        saved = self.step
        with Report(recipe, processes.first, self.step) as report:
            batches = iter(self.loader())
            stop = False  # what all processes agree on; a signal may reach one of them in the middle of a step
            while self.step < recipe.schedule.steps and not stop:
                self.minutes = processes.from_first((time.monotonic() - started) / 60)
                if progress(recipe.schedule, self.step, self.minutes) >= 1:
                    break
                rate = learning_rate(recipe.schedule, recipe.optimizer.lr, self.step, self.minutes)
                loss, stop = self.train_step(batches, rate, signals.stop)
                self.step += 1
                report.step(self.step, loss, rate, self.minutes, self.waited)
                if self.step % recipe.validation.every == 0:
                    self.validate(report)
                if self.step % recipe.saving.every == 0:
                    self.save()
                    saved = self.step
            if saved != self.step or self.step == 0:
                self.save()
            if stop:
                report.say(f"stopped after step {self.step}; the same command continues from {recipe.folder}")
                return
            if self.step % recipe.validation.every:
                self.validate(report)
            if processes.first:
                save(self.averaged, recipe.folder / "last.safetensors")
            report.say(f"done: {self.step} steps in {self.minutes:.1f} minutes; the weights are in {recipe.folder}")

    def train_step(self, batches: Iterator[tuple[Tensor, Tensor]], rate: float, stop: bool) -> tuple[float, bool]:
        """One step of the optimizer; the mean loss of all processes, and whether one of them was told to stop."""
        recipe, parts = self.recipe, self.recipe.optimizer.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(parts):
            begin = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - begin
            lr, hr = (self._to_device(images) for images in batch)
            distributed = isinstance(self.model, DistributedDataParallel)
            wait = self.model.no_sync() if distributed and part < parts - 1 else contextlib.nullcontext()  # type: ignore[operator]
            with wait:
                with self._autocast():
                    sr = self.model(lr)
                loss = self._loss(sr, hr) / parts
                value = loss.item()
                if value != value or abs(value) == float("inf"):
                    self._keep_batch(lr, hr)
                self.scaler.scale(loss).backward()
            total += value
        self.scaler.unscale_(self.optimizer)
        if recipe.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), recipe.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.net)
        loss_mean, stops = self.processes.mean([total, float(stop)])
        return loss_mean, stops > 0

    def validate(self, report: Report) -> None:
        """Scores the averaged network on every folder; the first process does, the others wait."""
        if self.processes.first:
            begin = time.monotonic()
            scores = self.validator.score(self.averaged)
            report.validation(self.step, scores, time.monotonic() - begin)
            mean = sum(score.psnr for score in scores.values()) / max(len(scores), 1)
            if scores and mean > self.best:
                self.best = mean
                save(self.averaged, self.recipe.folder / "best.safetensors")
        self.processes.wait()

    def save(self) -> None:
        """Writes a checkpoint, unless it would lead every continuation into the same failure."""
        if not all(bool(values.isfinite().all()) for values in self.net.parameters()):
            raise TrainingError(
                f"the weights after step {self.step} are not finite and are not saved, and {self._way_on()}"
            )
        state = self.state()
        if self.processes.first:
            write_state(self.recipe.folder, self.step, state, self.recipe.saving.keep)
        self.processes.wait()

    def loader(self, stop: int | None = None) -> Any:
        """The batches from the step at hand to step `stop`, by default the last one."""
        optimizer, processes = self.recipe.optimizer, self.processes
        return make_loader(
            self.data,
            start=self.step,
            stop=self.recipe.schedule.steps if stop is None else stop,
            batch=optimizer.batch,
            parts=optimizer.accumulate,
            rank=processes.rank,
            world=processes.world,
        )

    def _to_device(self, batch: Tensor) -> Tensor:
        layout = torch.channels_last if self.recipe.compute.channels_last else torch.contiguous_format
        batch = batch.to(self.device, non_blocking=True)
        return batch.to(torch.float32, memory_format=layout).mul_(self.net.input_range / 255)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.recipe.compute.precision)
        return torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

    def _loss(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The mean over a batch, in units of white = 1."""
        difference = (sr.float() - hr) / self.net.input_range
        if self.recipe.loss == "charbonnier":
            return (difference.square() + _CHARBONNIER**2).sqrt().mean()
        return difference.abs().mean()

    def _keep_batch(self, lr: Tensor, hr: Tensor) -> None:
        path = self.recipe.folder / f"not_finite_step_{self.step:08d}_process_{self.processes.rank}.pt"
        buffer = io.BytesIO()
        torch.save({"step": self.step, "lr": lr.cpu(), "hr": hr.cpu(), "net": self.net.state_dict()}, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, buffer.getvalue())
            kept = f"its batch and the weights are in {path}"
        except OSError as error:
            kept = f"its batch could not be kept ({error.strerror or error})"
        raise TrainingError(f"the loss of step {self.step} is not finite; {kept}, and {self._way_on()}")

    def _way_on(self) -> str:
        """What to do about a run that would come to the same point again."""
        states = list_states(self.recipe.folder)
        change = "a lower optimizer.lr, optimizer.clip_norm, or fp32"
        if not states:
            return f"there is no checkpoint yet: train with {change}"
        return (
            "the checkpoints before it are kept: train under another name with "
            f"model.warm_start={states[-1]} and {change}"
        )
