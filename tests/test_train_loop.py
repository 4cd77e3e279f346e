"""Runs: they learn, continue to the bit, and survive what goes wrong."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from train_helpers import photographs, tiny

import fastsr
from fastsr.cli import main
from fastsr.errors import CheckpointError, InputError, TrainingError
from fastsr.train import checkpoint, loop, train
from fastsr.train.checkpoint import list_states, load_latest, read_state
from fastsr.train.start import make_network


def _weights(folder):
    return fastsr.load(folder / "last.safetensors").state_dict()


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_learns_and_reports(tmp_path):
    val = photographs(tmp_path / "val", 2)
    recipe = tiny(
        tmp_path, "schedule.steps=40", "optimizer.lr=0.005", f"validation.hr.val={val}", "validation.every=20"
    )
    folder = train(recipe)
    with (folder / "training.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 20 and losses[-1] < losses[0] / 2
    with (folder / "validation.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["20", "40"]
    assert (folder / "pictures" / "val" / "0.png").exists() and (folder / "best.safetensors").exists()
    assert any((folder / "tensorboard").iterdir())


@pytest.mark.parametrize("extra", [(), ("optimizer.name=adamw", "optimizer.accumulate=2", "optimizer.clip_norm=0.1")])
def test_continuing_is_exact_to_the_bit(tmp_path, extra):
    whole = train(tiny(tmp_path, "name=whole", *extra))
    recipe = tiny(tmp_path, "name=parts", *extra)
    train(recipe)
    for path in list_states(recipe.folder)[1:]:  # as after a kill between the checkpoints of steps 3 and 6
        path.unlink()
    (recipe.folder / "last.safetensors").unlink()
    assert load_latest(recipe.folder)["step"] == 3
    train(recipe)
    assert _same(_weights(whole), _weights(recipe.folder))
    one, two = (read_state(list_states(folder)[-1]) for folder in (whole, recipe.folder))
    assert _same(one["net"], two["net"]) and _same(one["ema"], two["ema"])
    assert all(torch.equal(a, b) for a, b in zip(one["random"], two["random"], strict=True))
    for index, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(moments[key], two["optimizer"]["state"][index][key]) for key in moments)


def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path):
    one = _weights(train(tiny(tmp_path, "name=one", "schedule.steps=2")))
    parts = _weights(train(tiny(tmp_path, "name=parts", "schedule.steps=2", "optimizer.accumulate=4")))
    for key in one:
        torch.testing.assert_close(parts[key], one[key], rtol=0, atol=2e-5)


def test_a_damaged_last_checkpoint_falls_back(tmp_path, caplog):
    recipe = tiny(tmp_path)
    train(recipe)
    last = list_states(recipe.folder)[-1]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(bytes(data))
    assert load_latest(recipe.folder)["step"] == 3
    assert "step_00000006.state is damaged" in caplog.text
    for path in list_states(recipe.folder):
        path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="none of the 2"):
        train(recipe)


def test_another_recipe_is_refused(tmp_path):
    train(tiny(tmp_path))
    with pytest.raises(InputError, match=r"optimizer.lr: 0.001 -> 0.5"):
        train(tiny(tmp_path, "optimizer.lr=0.5"))


def test_rotation(tmp_path):
    recipe = tiny(tmp_path, "saving.every=1", "saving.keep=2")
    train(recipe)
    assert [path.name for path in list_states(recipe.folder)] == ["step_00000005.state", "step_00000006.state"]


def test_a_full_disk_is_reported_and_the_state_survives(tmp_path, monkeypatch):
    recipe = tiny(tmp_path)

    def full(_):
        if list_states(recipe.folder):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(recipe)
    assert load_latest(recipe.folder)["step"] == 3
    assert not list(recipe.folder.glob(".*.tmp"))


def test_a_write_that_the_system_refuses(tmp_path):
    """A real one, by a limit on the size of files just under that of a checkpoint; without it the run goes on."""
    resource = pytest.importorskip("resource")
    whole = _weights(train(tiny(tmp_path, "name=whole")))
    recipe = tiny(tmp_path, "name=limited")
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    train(recipe)
    first, last = list_states(recipe.folder)
    limit = last.stat().st_size - 1
    last.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "fastsr", "train", str(tmp_path / "run.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{last} cannot be written (File too large); those before it are kept: make room" in done.stderr
    assert list_states(recipe.folder) == [first] and not list(recipe.folder.glob(".*.tmp"))
    train(recipe)
    assert _same(whole, _weights(recipe.folder))


def test_sample_pictures_that_cannot_be_written_do_not_end_a_run(tmp_path, caplog):
    val = photographs(tmp_path / "val", 1)
    recipe = tiny(tmp_path, f"validation.hr.val={val}")
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "pictures").write_text("")
    train(recipe)
    assert "no sample picture" in caplog.text and (recipe.folder / "best.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_with_its_batch(tmp_path, monkeypatch):
    recipe = tiny(tmp_path)
    losses = iter([1.0, 1.0, 1.0, 1.0, float("nan")])
    true_loss = loop.Trainer._loss
    monkeypatch.setattr(loop.Trainer, "_loss", lambda self, sr, hr: true_loss(self, sr, hr) * next(losses))
    with pytest.raises(TrainingError, match="step 4 is not finite"):
        train(recipe)
    kept = torch.load(next(recipe.folder.glob("not_finite_*.pt")), weights_only=True)
    assert kept["step"] == 4 and kept["hr"].shape == (4, 3, 32, 32)
    assert load_latest(recipe.folder)["step"] == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_0(tmp_path, number, workers):
    """With workers the signal goes to every process, as a terminal, timeout and batch systems send it."""
    recipe = tiny(tmp_path, "schedule.steps=1000000", "saving.every=1000000", f"data.workers={workers}")
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    process = subprocess.Popen(
        [sys.executable, "-m", "fastsr", "train", str(tmp_path / "run.yaml")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    table = recipe.folder / "training.csv"
    try:
        for _ in range(2400):
            if process.poll() is not None or (table.exists() and table.read_text().count("\n") > 2):
                break
            time.sleep(0.05)
        (os.killpg if workers else os.kill)(process.pid, number)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped after step" in out
    assert load_latest(recipe.folder)["step"] >= 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_give_the_result_of_one(tmp_path, accumulate):
    one = tiny(tmp_path, "name=one")
    two = tiny(tmp_path, "name=two", f"optimizer.accumulate={accumulate}")
    (tmp_path / "two.yaml").write_text(two.as_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastsr"]
    done = subprocess.run(
        [*command, "train", str(tmp_path / "two.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    train(one)
    alone, together = _weights(one.folder), _weights(two.folder)
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=0, atol=2e-5)
    assert len(read_state(list_states(two.folder)[-1])["random"]) == 2


def _losses(name: str, backend: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Of 50 steps of Adam on smooth random images, the same for all backends and dtypes."""
    torch.manual_seed(seed)
    net = fastsr.create_model(name, scale=2, num_feat=16, num_block=1).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    losses = []
    with fastsr.backend(backend):
        for _ in range(50):
            hr = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 32, 32, dtype=torch.float64), 5, 1, 2).to(dtype)
            loss = (net(torch.nn.functional.avg_pool2d(hr, 2)) - hr).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("name", ["mlrn", "alkdnet"])
def test_fused_and_reference_training_stay_together(cpu_kernels, name):
    """The 2x rule for losses. Where a rounding error turns the sign of a difference, paths part at a random step, in
    plain PyTorch as in the kernels: what counts is how far, over several seeds."""
    far = {"reference": 0.0, "cpu": 0.0}
    for seed in range(3):
        exact = _losses(name, "reference", torch.float64, seed)
        assert exact[-1] < exact[0] / 2
        for backend in far:
            error = (_losses(name, backend, torch.float32, seed) - exact).abs().max().item()
            far[backend] = max(far[backend], error)
    print(name, far)
    assert far["cpu"] <= 2 * far["reference"] + 1e-7


def test_kill_loses_no_more_than_the_steps_since_the_last_checkpoint(tmp_path):
    """SIGKILL in the middle of a run, then the same command: the result of a run that nobody touched."""
    whole = train(tiny(tmp_path, "name=whole", "schedule.steps=60", "saving.every=5"))
    recipe = tiny(tmp_path, "name=killed", "schedule.steps=60", "saving.every=5")
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    command = [sys.executable, "-m", "fastsr", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(24000):
            if process.poll() is not None or len(list_states(recipe.folder)) > 1:
                break
            time.sleep(0.005)
        process.kill()
    finally:
        process.wait(timeout=60)
    step = load_latest(recipe.folder)["step"]
    assert process.returncode == -signal.SIGKILL and 10 <= step < 60 and step % 5 == 0
    train(recipe)
    assert _same(_weights(whole), _weights(recipe.folder))


@pytest.mark.parametrize("extra", ["compute.precision=fp16", "compute.deterministic=true", "compute.compile=true"])
def test_other_ways_to_compute(tmp_path, extra):
    """GradScaler, deterministic algorithms and torch.compile, on the CPU."""
    torch._dynamo.reset()
    plain = _weights(train(tiny(tmp_path, "name=plain", "schedule.steps=3")))
    other = _weights(train(tiny(tmp_path, "name=other", "schedule.steps=3", extra)))
    tolerance = 2e-2 if "fp16" in extra else 2e-5
    for key in plain:
        torch.testing.assert_close(other[key], plain[key], rtol=0, atol=tolerance)


def test_warm_start_takes_what_fits(tmp_path):
    first = train(tiny(tmp_path))
    recipe = tiny(
        tmp_path, "name=warm", "model.scale=3", f"model.warm_start={first / 'last.safetensors'}", "data.patch=13"
    )
    net, given = make_network(recipe.model), _weights(first)
    assert torch.equal(net.conv_1.weight, given["conv_1.weight"])
    assert net.upsampler[0].weight.shape[0] == 27
    with pytest.raises(CheckpointError, match="does not exist"):
        make_network(tiny(tmp_path, "model.warm_start=nowhere.pth").model)


def test_bfloat16(tmp_path):
    folder = train(tiny(tmp_path, "compute.precision=bf16"))
    assert all(value.isfinite().all() for value in _weights(folder).values())


def test_list_and_show(capsys):
    assert main(["train", "--list"]) == 0
    assert "alkdnet_x4" in capsys.readouterr().out
    assert main(["train", "--show", "mlrn_x2", "optimizer.lr=2e-4"]) == 0
    assert "lr: 0.0002" in capsys.readouterr().out
    assert main(["train"]) == 2
