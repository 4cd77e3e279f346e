"""Scores of a network in training, and pictures of what it does."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

from fastsr.errors import ImageError, InputError
from fastsr.evaluate import EvalResult, evaluate, find_pairs
from fastsr.freeze import freeze
from fastsr.imageio import Image, image_size, read_image, write_image
from fastsr.imresize import imresize, modcrop
from fastsr.models import SuperResolutionNet
from fastsr.train.recipe import Recipe
from fastsr.upscale import upscale_image

__all__ = ["Validator"]

log = logging.getLogger(__name__)


class Validator:
    """The folders to score, with what their images' headers tell looked at now: a score comes late.

    Args:
        least: the smallest height and width of an LR image.

    Raises:
        InputError: a folder is missing or holds no images, HR and LR do not match, or an image is too small.
        ImageError: an image cannot be read.
    """

    def __init__(self, recipe: Recipe, least: int) -> None:
        self.recipe = recipe
        validation = recipe.validation
        self._pairs = {
            name: find_pairs(hr, validation.lr.get(name), recipe.model.scale) for name, hr in validation.hr.items()
        }
        scale = recipe.model.scale
        for path in (path for pairs in self._pairs.values() for path, _ in pairs):
            height, width = image_size(path) or read_image(path).size  # which says what is wrong
            if min(height, width) < least * scale:
                raise InputError(
                    f"{path} is {width}x{height}; validation at scale {scale} needs at least "
                    f"{least * scale}x{least * scale}, so leave it out"
                )

    def score(self, net: SuperResolutionNet) -> dict[str, EvalResult]:
        """The scores of each folder but those that cannot be scored; sample pictures go to the run's folder."""
        validation = self.recipe.validation
        frozen: SuperResolutionNet = freeze(net)  # type: ignore[assignment]
        results = {}
        for name, hr in validation.hr.items():
            try:
                results[name] = evaluate(frozen, hr, lr_dir=validation.lr.get(name), progress=False)
            except (InputError, ImageError) as error:  # no reason to end a run
                log.warning("no scores of %s: %s", name, error)
            for path, lr in self._pairs[name][: validation.pictures]:
                try:
                    self._picture(frozen, name, path, lr)
                except (OSError, InputError) as error:
                    log.warning("no sample picture of %s: %s", path, error)
        return results

    def _picture(self, net: SuperResolutionNet, name: str, path: Path, lr: Path | None) -> None:
        if lr is None:
            image = Image(imresize(modcrop(read_image(path).rgb, net.scale), scale=Fraction(1, net.scale)))
        else:
            image = read_image(lr)
        folder = self.recipe.folder / "pictures" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{path.stem}.png", upscale_image(net, image))
