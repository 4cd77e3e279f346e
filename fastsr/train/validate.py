"""Scores of a network in training, and pictures of what it does."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import torch

from fastsr.errors import ImageError, InputError
from fastsr.evaluate import EvalResult, evaluate
from fastsr.freeze import freeze
from fastsr.imageio import Image, is_image_path, read_image, write_image
from fastsr.imresize import imresize, modcrop
from fastsr.models import SuperResolutionNet
from fastsr.train.recipe import Recipe
from fastsr.upscale import upscale_image

__all__ = ["Validator"]

log = logging.getLogger(__name__)


class Validator:
    """The folders to score.

    Raises:
        InputError: a folder is missing or holds no images.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        for place in (*recipe.validation.hr.values(), *recipe.validation.lr.values()):
            if not _images(Path(place)):
                raise InputError(f"{place} is not a folder that holds images; give one to validate on")

    def score(self, net: SuperResolutionNet) -> dict[str, EvalResult]:
        """The scores of each folder; sample pictures go to the run's folder."""
        validation = self.recipe.validation
        frozen: SuperResolutionNet = freeze(net)  # type: ignore[assignment]
        results = {}
        for name, hr in validation.hr.items():
            results[name] = evaluate(frozen, hr, lr_dir=validation.lr.get(name), progress=False)
            for path in _images(Path(hr))[: validation.pictures]:
                self._picture(frozen, path, name)
        return results

    def _picture(self, net: SuperResolutionNet, path: Path, name: str) -> None:
        hr = modcrop(read_image(path).rgb, net.scale)
        sr = upscale_image(net, Image(imresize(hr, scale=Fraction(1, net.scale))))
        folder = self.recipe.folder / "pictures" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{path.stem}.png", sr)
        except (OSError, ImageError) as error:  # no reason to end a run
            log.warning("no sample picture: %s", error)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image_path(path) and path.is_file())
