"""What a step consists of: the loss, clipping, averaging, precision; and what a run prints about it."""

from __future__ import annotations

import math
import os

import pytest
import torch
from train_helpers import photographs, tiny

import fastsr
from fastsr.evaluate import evaluate
from fastsr.train import loop, train
from fastsr.train.around import settings
from fastsr.train.checkpoint import list_states, read_state
from fastsr.train.processes import Processes


def _trainer(tmp_path, *overrides):
    return loop.Trainer(tiny(tmp_path, *overrides), Processes("cpu"))


@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("name", ["l1", "charbonnier"])
def test_losses_are_in_units_of_white(tmp_path, name, white):
    trainer = _trainer(tmp_path, f"loss={name}", f"model.settings.input_range={white}")
    sr, hr = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.3, 0.0])
    differences = [0.0, 0.2, 1.0]
    if name == "charbonnier":
        differences = [math.sqrt(d * d + 1e-6) for d in differences]
    assert trainer._loss(sr * white, hr * white).item() == pytest.approx(sum(differences) / 3, rel=1e-6)


def test_gradients_are_clipped(tmp_path):
    """The norm that the optimizer sees, which Adam would hide in the weights."""
    norms = {}
    for limit in (None, 0.01):
        trainer = _trainer(tmp_path, f"optimizer.clip_norm={'null' if limit is None else limit}")
        trainer.train_step(iter(trainer.loader()), 1e-3, False)
        norms[limit] = torch.nn.utils.get_total_norm([p.grad for p in trainer.net.parameters()]).item()
    assert norms[None] > 0.02 and norms[0.01] == pytest.approx(0.01, rel=1e-4)


def test_the_averaged_weights(tmp_path):
    trainer = _trainer(tmp_path, "ema=0.75")
    batches = iter(trainer.loader())
    trainer.train_step(batches, 1e-3, False)
    expected = trainer.net.conv_1.weight.detach().clone()  # it begins with the first step's weights
    for _ in range(3):
        trainer.train_step(batches, 1e-3, False)
        expected = 0.75 * expected + 0.25 * trainer.net.conv_1.weight.detach()
    torch.testing.assert_close(trainer.averaged.conv_1.weight, expected)
    assert _trainer(tmp_path, "ema=null").averaged.conv_1.weight.requires_grad


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_settings_are_set_and_put_back(tmp_path, monkeypatch, precision):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    compute = tiny(tmp_path, f"compute.precision={precision}", "compute.deterministic=true").compute
    with settings(compute):
        assert matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (precision == "tf32")
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert matmul.allow_tf32 is before and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("layout", ["true", "false"])
def test_the_layout_that_is_asked_for(tmp_path, layout):
    trainer = _trainer(tmp_path, f"compute.channels_last={layout}")
    images = trainer._to_device(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert images.is_contiguous(memory_format=torch.channels_last) is (layout == "true")
    assert images.dtype == torch.float32


@pytest.mark.parametrize("extra", ["compute.precision=fp16", "compute.precision=bf16", "data.workers=2", "ema=null"])
def test_continuing_is_exact_in_other_ways_to_train(tmp_path, extra):
    whole = train(tiny(tmp_path, "name=whole", extra))
    recipe = tiny(tmp_path, "name=parts", extra)
    train(recipe)
    for path in list_states(recipe.folder)[1:]:
        path.unlink()
    train(recipe)
    one, two = (read_state(list_states(folder)[-1]) for folder in (whole, recipe.folder))
    assert one["scaler"] == two["scaler"] and bool(one["scaler"]) is ("fp16" in extra)
    assert all(torch.equal(value, two["net"][key]) for key, value in one["net"].items())


def test_without_a_terminal_a_run_prints_lines(tmp_path, capsys):
    val = photographs(tmp_path / "val", 1)
    train(tiny(tmp_path, f"validation.hr.val={val}", "validation.every=3", "saving.every=100"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 2 of 6: loss 0.") and " images/s" in lines[0] and lines[0].endswith(" left")
    assert lines[1].startswith("step 3: val PSNR-Y ")
    assert lines[2].startswith("step 4 of 6: loss 0.") and "val " in lines[2] and " dB" in lines[2]


def test_a_validation_drops_no_loss(tmp_path):
    """The mean of a row is that of all steps since the row before, whatever came between."""
    val = photographs(tmp_path / "val", 1)
    plain = train(tiny(tmp_path, "name=plain"))
    between = train(tiny(tmp_path, "name=between", f"validation.hr.val={val}", "validation.every=1"))
    losses = [
        [line.split(",")[1] for line in (folder / "training.csv").read_text().splitlines()]
        for folder in (plain, between)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_the_best_weights_are_those_of_the_best_validation(tmp_path):
    val = photographs(tmp_path / "val", 1)
    folder = train(tiny(tmp_path, f"validation.hr.val={val}", "validation.every=2", "optimizer.lr=0.005"))
    rows = [line.split(",") for line in (folder / "validation.csv").read_text().splitlines()[1:]]
    scores = {int(step): float(psnr) for step, _, psnr, _ in rows}
    result = evaluate(fastsr.load(folder / "best.safetensors"), val)
    assert set(scores) == {2, 4, 6} and result.psnr == pytest.approx(max(scores.values()), abs=1e-3)
