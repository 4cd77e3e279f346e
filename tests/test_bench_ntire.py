"""The challenge's measurement: its counts, its score, its images."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from fastsr import cli
from fastsr.bench.ntire import measure, read_images, score
from fastsr.errors import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "lr"
    folder.mkdir()
    for name, width, height in (("b.png", 20, 17), ("a.png", 24, 16)):
        pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
        PIL.Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_are_read_as_they_are(photos: Path) -> None:
    (first, a), (second, b) = read_images(photos)
    assert (first, second) == ("a.png", "b.png") and a.shape == (1, 3, 16, 24) and b.shape == (1, 3, 17, 20)
    assert a[0, :, 0, 1].tolist() == pytest.approx([3 / 255, 4 / 255, 5 / 255])


def test_figures(photos: Path) -> None:
    found = measure(photos, torch.device("cpu"), ["mlrn_ntire"])
    rows = {(row["network"], row["path"]): row for row in found["rows"]}
    assert set(rows) == {(n, p) for n in ("mlrn_ntire", "rlfn_ntire") for p in ("plain", "fastsr")}
    mlrn, base = rows["mlrn_ntire", "fastsr"], rows["rlfn_ntire", "plain"]
    # MLRN as in its paper's table 3. For RLFN the challenge of 2024 prints 0.317 M and 19.67 G: its counter takes the
    # bilinear enlargements along, which are not convolutions.
    assert (mlrn["params"], mlrn["convolutions"]) == (274_710, 43)
    assert mlrn["macs"] / 1e9 == pytest.approx(16.85, abs=0.005)
    assert mlrn["activations"] / 1e6 == pytest.approx(97.87, abs=0.005)
    assert (base["params"] / 1e6, base["macs"] / 1e9) == pytest.approx((0.3172, 19.658), abs=0.0005)
    assert base["score"] == pytest.approx(math.e**2)
    assert all(len(row["times"]) == 2 and row["ms"] == pytest.approx(sum(row["times"]) / 2) for row in rows.values())


def test_the_score() -> None:
    base = {"ms": 10.0, "macs": 100, "params": 1000}
    assert score(base, base) == pytest.approx(7.389, abs=1e-3)
    half = {"ms": 5.0, "macs": 100, "params": 500}
    assert score(half, base) == pytest.approx(0.7 * math.e + 0.15 * math.e**2 + 0.15 * math.e)


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, path = list(root.handlers), tmp_path / "ntire.json"
    arguments = ["--lr-dir", str(photos), "--names", "rlfn_ntire", "--device", "cpu", "--json", str(path)]
    assert cli.main(["bench", "ntire", *arguments]) == 0
    root.handlers[:] = handlers
    assert "2 images, x4" in capsys.readouterr().out
    assert [row["path"] for row in json.loads(path.read_text())["rows"]] == ["plain", "fastsr"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        read_images(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no image"):
        read_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_images(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="did you mean 'mlrn_ntire'"):
        measure(tmp_path, torch.device("cpu"), ["mlrn_ntir"])
