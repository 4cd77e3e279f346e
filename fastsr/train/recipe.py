"""Recipes: strict YAML that says everything a training run depends on.

A recipe is a mapping that `Recipe` describes; a key it does not know is an error that names the nearest one. Values may
be overridden from the command line as `section.key=value`, read as YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from fastsr.errors import InputError, MissingPackageError

try:
    import msgspec
    import yaml
except ImportError as error:
    raise MissingPackageError(
        f"training needs the package {error.name}, which is not installed: pip install pyyaml msgspec tensorboard"
    ) from error

__all__ = ["Recipe", "describe_differences", "load_recipe", "shipped_recipes"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Rate = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]

FOLDER = Path(__file__).parent / "recipes"


class Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of the parts of a recipe: unknown keys are refused."""


class Model(Section, frozen=True, kw_only=True):
    """The network: a name and a scale of `fastsr models`, and keywords of its class."""

    name: str
    scale: Positive
    settings: dict[str, Any] = {}
    zero_tail: bool = False  # the last convolution starts at zero, so that MLRN starts as its bilinear enlargement
    warm_start: str | None = None  # a checkpoint whose tensors are taken where names and shapes agree


class Data(Section, frozen=True, kw_only=True):
    """Where the images come from and how they are cut.

    `hr` and `lr` are folders or LMDBs; without `lr` it is made by MATLAB's bicubic and kept in `lr_cache`.
    """

    hr: str
    lr: str | None = None
    meta_info: str | None = None  # a text file with one HR name a line; what follows the first blank is ignored
    lr_cache: str = "runs/lr_cache"
    patch: Positive = 48  # of the LR side, in pixels
    flip: bool = True
    rotate: bool = True
    workers: NotNegative = 0
    cache_mib: NotNegative = 1024  # decoded images kept in memory by each process, for all its workers
    max_bad_images: NotNegative = 10


class Optimizer(Section, frozen=True, kw_only=True):
    """Adam or AdamW and what happens to the gradients before it."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Rate = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    batch: Positive = 64  # of all processes together
    accumulate: Positive = 1  # parts in which a process computes its share of the batch


class Schedule(Section, frozen=True, kw_only=True):
    """How long, and the learning rate on the way: a warm-up, then cosine to `min_lr`, or `gamma` every `every` steps.

    `max_minutes` ends the run by wall-clock time, pauses included; the schedule then follows whichever of steps and
    minutes is further on. Such a run ends on time and is not reproducible to the bit.
    """

    name: Literal["cosine", "step"] = "cosine"
    steps: Positive
    warmup: NotNegative = 0
    min_lr: Annotated[float, msgspec.Meta(ge=0)] = 1e-7
    every: Positive | None = None
    gamma: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    max_minutes: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Validation(Section, frozen=True, kw_only=True):
    """Folders to score, every `every` steps and at the end; `lr` folders go with `hr` by name."""

    hr: dict[str, str] = {}
    lr: dict[str, str] = {}
    every: Positive = 5000
    pictures: NotNegative = 2  # kept of each folder


class Saving(Section, frozen=True, kw_only=True):
    """Where a run is kept. A checkpoint is written every `every` steps, the last `keep` are left."""

    folder: str = "runs"
    every: Positive = 1000
    keep: Positive = 3


class Compute(Section, frozen=True, kw_only=True):
    """Device and arithmetic."""

    device: str = "auto"
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    threads: NotNegative = 0  # 0: as PyTorch decides
    backend: Literal["auto", "cuda", "triton", "cpu", "reference"] = "auto"


class Recipe(Section, frozen=True, kw_only=True):
    """A whole training run."""

    name: str
    model: Model
    data: Data
    schedule: Schedule
    optimizer: Optimizer = Optimizer()
    loss: Literal["l1", "charbonnier"] = "l1"
    ema: Fraction | None = 0.999
    seed: NotNegative = 0
    validation: Validation = Validation()
    saving: Saving = Saving()
    compute: Compute = Compute()
    log_every: Positive = 100
    wandb: str | None = None  # a project; logs there if wandb is installed

    @property
    def folder(self) -> Path:
        return Path(self.saving.folder) / self.name

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for YAML and checkpoints."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    def as_yaml(self) -> str:
        text: str = yaml.safe_dump(self.as_dict(), sort_keys=False)
        return text


# What may change between a checkpoint and its continuation without changing the weights that come out.
_FREE = (
    "validation.",
    "saving.",
    "log_every",
    "wandb",
    "data.workers",
    "data.cache_mib",
    "data.lr_cache",
    "data.max_bad_images",
    "compute.threads",
)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with fastsr, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a YAML file, or the name of a shipped recipe.
        overrides: `section.key=value`, later ones win.

    Raises:
        InputError: the file is missing or is no such recipe; the message names the key and the nearest known one.
    """
    content = _read(source)
    for override in overrides:
        _override(content, override)
    try:
        _check_keys(content, Recipe, "")
        recipe = msgspec.convert(content, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"the recipe {source}: {_in_words(str(error))}") from error
    except InputError as error:
        raise InputError(f"the recipe {source}: {error}") from error
    _check_values(recipe, source)
    return recipe


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed from one recipe (as data) to another, as "key: old -> new", but for what keeps the weights."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_FREE)
    ]


class _StrictLoader(yaml.SafeLoader):
    """YAML without a key that stands twice in a mapping: PyYAML would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(
                        f"{key.value} stands twice in one section, again in line {key.start_mark.line + 1}"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        shipped = shipped_recipes()
        if source not in shipped:
            near = difflib.get_close_matches(source, shipped, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"there is no recipe {source}; {hint}pass a YAML file or a name that `fastsr train --list` prints"
            )
        path = shipped[source]
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {source} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {source} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"the recipe {source} holds {type(content).__name__}; it must be a mapping of sections")
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key:
        raise InputError(f"{override!r} overrides nothing; write it as section.key=value, such as optimizer.lr=0.0005")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {override!r} is not YAML: {error}") from error
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{override!r}: {parent} is not a section")
        place = inner
    place[last] = value


def _check_keys(content: Mapping[str, Any], section: type[msgspec.Struct], where: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in content.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {where}{near[0]}? " if near else ""
            raise InputError(f"unknown key {where}{key}; {hint}accepted are {', '.join(fields)}")
        inner = fields[key]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, Mapping):
            _check_keys(value, inner, f"{where}{key}.")


def _in_words(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.data.patch`" with the place first, and the choices if there are."""
    text, _, place = message.partition(" - at `$.")
    if not place:
        return text
    place = place.rstrip("`")
    kind: Any = Recipe
    for name in place.split("."):
        fields = msgspec.structs.fields(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()
        kind = next((field.type for field in fields if field.name == name), None)
    choices = f"; accepted are {', '.join(get_args(kind))}" if get_origin(kind) is Literal else ""
    return f"{place}: {text}{choices}"


def _check_values(recipe: Recipe, source: str) -> None:
    schedule, validation = recipe.schedule, recipe.validation
    if schedule.name == "step" and schedule.every is None:
        raise InputError(
            f"the recipe {source}: schedule.name is step and schedule.every is missing; pass a number of steps"
        )
    if schedule.warmup >= schedule.steps:
        raise InputError(
            f"the recipe {source}: schedule.warmup is {schedule.warmup} of {schedule.steps} steps; it must be shorter"
        )
    for key in ("scale", "upscale", "pretrained", "name"):
        if key in recipe.model.settings:
            raise InputError(
                f"the recipe {source}: model.settings holds {key}, which is no setting of a network; there are "
                "model.name, model.scale and model.warm_start"
            )
    for name in validation.lr.keys() - validation.hr.keys():
        raise InputError(f"the recipe {source}: validation.lr names {name}, which validation.hr does not")
    if Path(recipe.name).name != recipe.name or recipe.name in ("", ".", ".."):
        raise InputError(
            f"the recipe {source}: name is {recipe.name!r}; it names a folder, so it must be one plain name"
        )


def _leaves(data: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", list(value) if isinstance(value, tuple) else value
