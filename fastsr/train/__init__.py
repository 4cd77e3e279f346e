"""`fastsr train`: recipes, data, the loop, and what keeps a run safe. Needs the packages of `fastsr[train]`."""

from fastsr.train.loop import train
from fastsr.train.recipe import Recipe, load_recipe, shipped_recipes

__all__ = ["Recipe", "load_recipe", "shipped_recipes", "train"]
