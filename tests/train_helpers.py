"""Tiny photographs and a tiny recipe for the tests of training."""

from __future__ import annotations

from pathlib import Path

from image_helpers import picture

from fastsr.imageio import Image, write_image
from fastsr.train.recipe import Recipe, load_recipe

TINY = """
name: tiny
model: {name: mlrn, scale: 2, settings: {num_feat: 8, num_block: 1}}
data: {patch: 16}
optimizer: {lr: 1.0e-3, batch: 4}
schedule: {steps: 6, warmup: 1}
validation: {every: 100, pictures: 1}
saving: {every: 3}
compute: {device: cpu, threads: 1}
log_every: 2
"""


def photographs(folder: Path, count: int = 5) -> Path:
    """`count` images of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_image(folder / f"{i}.png", Image(picture(40 + 2 * i, 46 + i, seed=i)))
    return folder


def tiny(folder: Path, *overrides: str) -> Recipe:
    """A recipe on photographs in `folder`/hr that keeps its run in `folder`/runs."""
    hr = folder / "hr" if (folder / "hr").exists() else photographs(folder / "hr")
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    places = (f"data.hr={hr}", f"data.lr_cache={folder / 'cache'}", f"saving.folder={folder / 'runs'}")
    return load_recipe(str(path), (*places, *overrides))
