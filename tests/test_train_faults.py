"""What goes wrong in the middle of a run: told in one sentence, and nothing that was reached is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from train_helpers import photographs, tiny

import fastsr
from fastsr.cli import main
from fastsr.errors import CheckpointError, InputError, TrainingError
from fastsr.train import loop, report, train
from fastsr.train.checkpoint import list_states, load_latest
from fastsr.train.data import _FORK, PatchDataset
from fastsr.train.start import make_network


def _spoil(trainer, step):
    """As a gradient that is not finite would, after the loss was found to be."""
    if trainer.step == step:
        with torch.no_grad():
            trainer.net.conv_1.weight[0, 0, 0, 0] = float("nan")


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """A checkpoint of them would lead every continuation into the same failure."""
    recipe = tiny(tmp_path)
    save = loop.Trainer.save
    monkeypatch.setattr(loop.Trainer, "save", lambda self: (_spoil(self, 6), save(self)))
    with pytest.raises(TrainingError, match=r"weights after step 6 are not finite.*warm_start=\S+step_00000003\.state"):
        train(recipe)
    assert load_latest(recipe.folder)["step"] == 3


def test_a_checkpoint_of_a_run_starts_another(tmp_path):
    """The way on after a loss that is not finite: another name, other settings, the weights that were reached."""
    folder = train(tiny(tmp_path))
    last = list_states(folder)[-1]
    net = make_network(tiny(tmp_path, f"model.warm_start={last}").model)
    given = fastsr.load(folder / "last.safetensors").state_dict()
    assert all(torch.equal(value, given[key]) for key, value in net.state_dict().items())
    last.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="is damaged"):
        make_network(tiny(tmp_path, f"model.warm_start={last}").model)


def test_a_warm_start_names_what_it_leaves_out(tmp_path, caplog):
    first = train(tiny(tmp_path)) / "last.safetensors"
    make_network(tiny(tmp_path, "model.scale=4", f"model.warm_start={first}").model)
    assert "2 of the" in caplog.text and "(upsampler.0.weight, upsampler.0.bias)" in caplog.text


def test_a_batch_that_cannot_be_kept(tmp_path, monkeypatch):
    recipe = tiny(tmp_path)
    monkeypatch.setattr(loop.Trainer, "_loss", lambda self, sr, hr: sr.sum() * float("nan"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "atomic_write", full)
    with pytest.raises(TrainingError, match=r"step 0 is not finite; its batch could not be kept \(No space left"):
        train(recipe)


@pytest.mark.parametrize(
    "error, message",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), "raise optimizer.accumulate"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "raise optimizer.accumulate"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"), "lower data.workers"),
        (ConnectionResetError(104, "Connection reset by peer"), "lower data.workers"),
    ],
)
def test_failures_of_the_machine_are_one_sentence(tmp_path, capsys, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(loop.Trainer, "_loss", fail)
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastsr: error")]
    assert len(said) == 1 and message in said[0]


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop.Trainer, "_loss", fail)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        train(tiny(tmp_path))


@pytest.mark.skipif(not _FORK, reason="workers are not forked here")
def test_a_worker_that_is_killed(tmp_path, monkeypatch):
    """As the kernel does it when memory runs out; then the same command goes on."""
    recipe = tiny(tmp_path, "schedule.steps=1000", "data.workers=1")
    take, this = PatchDataset.__getitem__, os.getpid()

    def until_80(self, number):
        if number == 80 and os.getpid() != this:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, number)

    monkeypatch.setattr(PatchDataset, "__getitem__", until_80)
    with pytest.raises(TrainingError, match=r"loads images ended \(.*lower data.workers"):
        train(recipe)
    assert load_latest(recipe.folder)["step"] >= 9


def test_a_mistake_that_a_worker_finds_is_told_without_its_traceback(tmp_path, capsys, monkeypatch):
    recipe = tiny(tmp_path, "data.workers=1", "data.cache_mib=0", "data.max_bad_images=1", "schedule.steps=1000")
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    open_pairs = loop.open_pairs

    def then_spoil(*arguments, **options):
        data = open_pairs(*arguments, **options)
        for path in (tmp_path / "hr").iterdir():
            path.write_bytes(b"no image")
        return data

    monkeypatch.setattr(loop, "open_pairs", then_spoil)
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastsr: error")]
    assert len(said) == 1 and "Traceback" not in said[0]
    assert said[0].startswith("fastsr: error: 2 training images cannot be read, more than data.max_bad_images=1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_images_are_read_ends_at_once(tmp_path, capsys, monkeypatch, number):
    recipe = tiny(tmp_path)
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "open_pairs", lambda *_, **__: signal.raise_signal(number))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert "stopped before the first step" in capsys.readouterr().out
    assert not recipe.folder.exists() and signal.getsignal(number) is before


def test_what_a_kill_left_behind_is_removed(tmp_path):
    recipe = tiny(tmp_path)
    recipe.folder.mkdir(parents=True)
    left = recipe.folder / ".0123.tmp"
    left.write_bytes(b"half")
    train(recipe)
    assert not left.exists()


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused before it reads an image; the first goes on, and its workers hold nothing of it."""
    recipe = tiny(tmp_path, "schedule.steps=100000", "data.workers=1", "saving.every=100000")
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    command = [sys.executable, "-m", "fastsr", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        with pytest.raises(InputError, match=r"another process trains in .*tiny"):
            train(recipe)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(timeout=60)
    train(tiny(tmp_path, "data.workers=1"))  # at once, as the killed run's worker may still be there
    assert load_latest(recipe.folder)["step"] == 6


def test_a_validation_that_fails_does_not_end_a_run(tmp_path, caplog):
    val, other = photographs(tmp_path / "val", 2), photographs(tmp_path / "other", 1)
    data = (val / "0.png").read_bytes()
    (val / "0.png").write_bytes(data[: len(data) // 2])  # its header is whole
    recipe = tiny(tmp_path, f"validation.hr.val={val}", f"validation.hr.other={other}", "validation.every=3")
    folder = train(recipe)
    assert "no scores of val" in caplog.text and "0.png is damaged" in caplog.text
    rows = (folder / "validation.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["3", "other"], ["6", "other"]]
    assert load_latest(folder)["step"] == 6


class _Failing:
    """Tensorboard on a full disk: its thread failed, and every later call says so."""

    def __init__(self, *_, **__):
        pass

    def add_scalar(self, *_):
        raise OSError(28, "No space left on device")

    def close(self):
        raise OSError(28, "No space left on device")


def test_tensorboard_on_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    import torch.utils.tensorboard as package

    monkeypatch.setattr(package, "SummaryWriter", _Failing)
    folder = train(tiny(tmp_path))
    assert caplog.text.count("tensorboard gets no more figures") == 1 and "No space left" in caplog.text
    assert (folder / "training.csv").read_text().count("\n") == 4


def test_only_a_thread_that_cannot_write_is_silent(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(report.threading, "excepthook", lambda failed: seen.append(failed.exc_type))

    def failing(error):
        def run():
            raise error

        thread = report.threading.Thread(target=run)
        thread.start()
        thread.join()

    with report.Report(tiny(tmp_path), True, 0):
        failing(OSError(28, "No space left on device"))
        failing(ZeroDivisionError())
    failing(OSError())
    assert seen == [ZeroDivisionError, OSError]
