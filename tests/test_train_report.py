"""wandb and tensorboard: there if installed and asked for, and a run that does without them."""

from __future__ import annotations

import csv
import logging
import sys
import types

import pytest
from train_helpers import photographs, tiny

from fastsr.train import report, train


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module that keeps what it is told."""
    module = types.ModuleType("wandb")
    module.asked, module.logged, module.finished = {}, [], 0

    def log(values, step):
        module.logged.append((step, values))

    def finish():
        module.finished += 1

    def init(**options):
        module.asked = options
        return types.SimpleNamespace(log=log, finish=finish)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_what_the_tables_hold(tmp_path, fake_wandb):
    val = photographs(tmp_path / "val", 1)
    recipe = tiny(tmp_path, "wandb=pictures", f"validation.hr.val={val}", "validation.every=3")
    folder = train(recipe)
    assert fake_wandb.asked["project"] == "pictures" and fake_wandb.asked["resume"] == "allow"
    assert fake_wandb.asked["id"] == fake_wandb.asked["name"] == "tiny"
    assert fake_wandb.asked["config"] == recipe.as_dict() and fake_wandb.finished == 1
    losses = {step: values["loss"] for step, values in fake_wandb.logged if "loss" in values}
    with (folder / "training.csv").open() as file:
        rows = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx(losses, rel=1e-5) and set(rows) == {2, 4, 6}
    assert [step for step, values in fake_wandb.logged if "val/psnr_y" in values] == [3, 6]


def test_wandb_is_left_alone_unless_asked_for(tmp_path, fake_wandb):
    train(tiny(tmp_path, "schedule.steps=2"))
    assert not fake_wandb.asked and not fake_wandb.logged


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_wandb_that_fails_does_not_end_a_run(tmp_path, fake_wandb, monkeypatch, caplog, where):
    """No login, a lost connection: told once, and the CSV files go on."""

    def fail(*_, **__):
        raise ConnectionError("no login\nmore")

    if where == "init":
        monkeypatch.setattr(fake_wandb, "init", fail)
    else:
        monkeypatch.setattr(
            fake_wandb,
            "init",
            lambda **_: types.SimpleNamespace(**{"log": lambda *_, **__: None, "finish": lambda: None, where: fail}),
        )
    folder = train(tiny(tmp_path, "wandb=pictures"))
    assert [record.levelname for record in caplog.records if "(no login)" in record.message] == ["WARNING"]
    assert (folder / "training.csv").read_text().count("\n") == 4 and (folder / "last.safetensors").exists()


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_told_and_the_run_goes_on(tmp_path, monkeypatch, caplog, package):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "wandb" if package == "wandb" else "torch.utils.tensorboard", None)
    folder = train(tiny(tmp_path, "schedule.steps=2", "wandb=pictures" if package == "wandb" else "log_every=2"))
    assert f"{package} is " in caplog.text and "not installed" in caplog.text
    assert (folder / "last.safetensors").exists() and (folder / "training.csv").read_text().count("\n") == 2
    assert (folder / "tensorboard").exists() is (package == "wandb")


def test_a_table_that_cannot_be_written_is_told_once(tmp_path, caplog, monkeypatch):
    def then_spoil(self, *_):
        (tmp_path / "runs" / "tiny" / "training.csv").unlink(missing_ok=True)
        (tmp_path / "runs" / "tiny" / "training.csv").mkdir(exist_ok=True)
        return self

    monkeypatch.setattr(report.Report, "__enter__", then_spoil)
    folder = train(tiny(tmp_path))
    assert caplog.text.count("rows of") == 1 and "training.csv are lost" in caplog.text
    assert (folder / "last.safetensors").exists()
