"""Networks by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, NamedTuple

from fastsr.errors import InputError, UnknownModelError
from fastsr.models.alkdnet import BSRN, ALKDNet
from fastsr.models.base import SuperResolutionNet
from fastsr.models.mlrn import MLRN, RLFN


class ModelEntry(NamedTuple):
    """One registered network: its class, the scales the paper trains, and what differs from the class's defaults."""

    cls: type[ALKDNet] | type[BSRN] | type[MLRN] | type[RLFN]
    scales: tuple[int, ...]
    settings: dict[str, Any]
    summary: str


_MODELS: dict[str, ModelEntry] = {
    "alkdnet": ModelEntry(ALKDNet, (2, 3, 4), {}, "asymmetric large-kernel distillation network"),
    "bsrn": ModelEntry(BSRN, (2, 3, 4), {}, "blueprint separable residual network"),
    "mlrn": ModelEntry(MLRN, (2, 3, 4), {}, "mixer-based local residual network"),
    "mlrn_ntire": ModelEntry(
        MLRN, (4,), {"num_feat": 50, "num_block": 4, "input_range": 255.0}, "MLRN of the NTIRE 2023 challenge"
    ),
    "rlfn": ModelEntry(RLFN, (2, 4), {}, "residual local feature network"),
    "rlfn_ntire": ModelEntry(
        RLFN, (4,), {"num_feat": 46, "mid_channels": 48, "num_block": 4}, "RLFN of the NTIRE 2022 challenge"
    ),
}
_ALIASES = {"alkdn": "alkdnet"}


def list_models() -> list[str]:
    """Names that `create_model` accepts."""
    return sorted(_MODELS)


def model_entry(name: str) -> ModelEntry:
    """The registry entry of `name`, in any case and with "ALKDN" for ALKDNet.

    Raises:
        UnknownModelError: no network has that name.
    """
    key = str(name).lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key not in _MODELS:
        near = difflib.get_close_matches(key, _MODELS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(f"no network is called {name!r}; {hint}there are {', '.join(list_models())}")
    return _MODELS[key]


def create_model(name: str, *, scale: int | None = None, **overrides: Any) -> SuperResolutionNet:
    """Build a network with freshly initialised weights.

    Args:
        name: one of `list_models()`, in any case; "ALKDN" means "alkdnet".
        scale: enlargement; by default the smallest that the paper trains.
        overrides: any keyword of the network's class, for example `lk_size=7`.

    Raises:
        UnknownModelError: no network has that name.
        InputError: an unknown keyword or a value outside what the network accepts.
    """
    entry = model_entry(name)
    accepted = [p for p in inspect.signature(entry.cls.__init__).parameters if p not in ("self", "scale")]
    for key in overrides:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{name} has no setting {key!r}; {hint}there are scale, {', '.join(accepted)}")
    if scale is None and overrides.get("upscale") is None:
        scale = entry.scales[0]
    return entry.cls(scale=scale, **{**entry.settings, **overrides})
