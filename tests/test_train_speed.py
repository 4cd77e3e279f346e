"""The loader is measured beside the steps, and a run tells how long it waited for images."""

from __future__ import annotations

import csv
import json
import logging

import pytest
from train_helpers import tiny

from fastsr.cli import main
from fastsr.train import loop, report, speed, train
from fastsr.train.data import _FORK, open_pairs


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_and_the_steps_are_measured(tmp_path, workers):
    recipe = tiny(tmp_path, f"data.workers={workers}")
    found = speed.measure(recipe, seconds=0.2)
    assert found["workers"] == workers and found["images"] == 5
    assert found["loader_images_per_s"] > 0 and found["step_images_per_s"] > 0 and 0 <= found["waiting"] < 1
    assert found["together_images_per_s"] > 0
    assert not recipe.folder.exists()


def test_a_slow_loader_is_seen(tmp_path, monkeypatch, caplog):
    """Batches that take 80 ms: the measurement gives their rate, and the run says that it waits for them."""
    recipe = tiny(tmp_path)
    original = loop.Trainer.loader

    def slow(self, **options):
        for batch in original(self, **options):
            loop.time.sleep(0.08)
            yield batch

    monkeypatch.setattr(loop.Trainer, "loader", slow)
    found = speed.measure(recipe, seconds=0.5)
    assert found["loader_images_per_s"] < 4 / 0.08 and found["waiting"] > 0.2
    assert "times what they need" in speed.text(found)
    caplog.set_level(logging.WARNING)
    folder = train(tiny(tmp_path))
    with (folder / "training.csv").open() as file:
        assert all(0.2 < float(row["waiting"]) <= 1 for row in csv.DictReader(file))
    assert caplog.text.count("raise data.workers or data.cache_mib") == 1


def test_the_command_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed.measure, "__defaults__", (0.1,))
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    path = tmp_path / "speed.json"
    assert main(["train", "--speed", "--json", str(path), str(tmp_path / "run.yaml")]) == 0
    assert "images/s" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["loader"]["step_images_per_s"] > 0 and content["environment"]["kind"] == "cpu"


@pytest.mark.skipif(not _FORK, reason="workers are not forked here")
def test_workers_share_what_was_decoded(tmp_path):
    """An image that the first process decoded is not decoded again in a worker: its file may be gone."""
    recipe = tiny(tmp_path, "data.workers=2")
    data = open_pairs(recipe.data, 2, 0)
    for path in (tmp_path / "hr").iterdir():
        path.unlink()
    assert len(list(loop.make_loader(data, start=0, stop=3, batch=4))) == 3 and not data.bad


def test_rows_of_an_older_table_are_kept(tmp_path):
    path = tmp_path / "training.csv"
    path.write_text("step,loss\n2,0.5\n4,0.4\n6,0.\n8")
    report._Table(path, ("step", "loss", "waiting"), 4)
    assert path.read_text().split() == ["step,loss,waiting", "2,0.5,", "4,0.4,"]
