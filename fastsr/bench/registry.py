"""The registry: operators, networks, peers and groups, as benchmarks/registry/registry.yaml declares them.

`python -m fastsr.bench.registry` writes registry.json beside it, the same data for machines without PyYAML.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastsr.errors import InputError

GROUPS = ("ops", "models", "train")
DTYPES = ("fp32", "tf32", "fp16", "bf16")
DIRECTIONS = ("forward", "backward", "step")
LAYOUTS = ("channels_last", "contiguous")

# In a source tree the registry is in benchmarks/, an installation has it in the package.
_PLACES = (Path(__file__).with_name("registry_data"), Path(__file__).resolve().parents[2] / "benchmarks" / "registry")


@dataclass(frozen=True)
class Operator:
    """One operator to measure: channels of its maps, its name in fastsr.ops, keywords of its builder in cases.py."""

    inputs: list[int]
    operator: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """How one contender runs a case; see the registry for what each field stands for."""

    name: str
    kind: str = "torch"
    backend: str = "reference"
    layout: str = "contiguous"
    compile: str | None = None
    graph: bool = False
    shifted: bool = False
    forced_copies: bool = False
    frozen: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    groups: tuple[str, ...] = GROUPS
    directions: tuple[str, ...] = DIRECTIONS

    @property
    def ours(self) -> bool:
        """Whether this is fastsr itself rather than somebody to beat."""
        return self.name.split()[0] == "fastsr"


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a row; a group consists of one grid or several."""

    sizes: list[str]
    dtypes: list[str]
    directions: list[str]
    peers: list[str]
    names: list[str] = field(default_factory=list)  # all if empty
    layouts: list[str] = field(default_factory=lambda: ["channels_last"])


@dataclass(frozen=True)
class Registry:
    """All of it, checked."""

    operators: dict[str, Operator]
    networks: dict[str, dict[str, Any]]
    peers: dict[str, Peer]
    tolerances: dict[str, dict[str, float]]
    groups: dict[str, dict[str, Any]]

    def names(self, group: str) -> list[str]:
        """What can be measured in a group."""
        return list(self.operators if group == "ops" else self.networks)

    def grids(self, group: str, kind: str, quick: bool = False) -> list[Grid]:
        """What a run of `group` on a device of `kind`, "cpu" or "cuda", consists of."""
        entry = self.groups[group]
        return [Grid(**{**entry[kind][0], **entry["quick"]})] if quick else [Grid(**grid) for grid in entry[kind]]


def folder() -> Path:
    """Where the registry is."""
    return next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def nearest(what: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    """Raise InputError for the first of `given` that is not accepted, naming the nearest that is."""
    accepted = list(accepted)
    for name in given:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"no {what} is called {name!r}; {hint}there are {', '.join(accepted)}")


def parse_size(size: str) -> tuple[int, int, int]:
    """(batch, height, width) of "640x360" or "64x48x48".

    Raises:
        InputError: it is neither.
    """
    parts = size.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"the size is {size!r}; pass WIDTHxHEIGHT or BATCHxWIDTHxHEIGHT, such as 640x360 or 64x48x48")
    *batch, width, height = map(int, parts)
    return (batch[0] if batch else 1), height, width


def read_raw(path: Path) -> dict[str, Any]:
    """The registry as plain data: YAML, or JSON by the ending."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    import yaml

    return yaml.safe_load(text)


@cache
def load_registry(path: Path | None = None) -> Registry:
    """The registry in `path`, by default the one that ships.

    Raises:
        InputError: a key, a peer or a name is unknown, or the file is missing.
    """
    if path is None:
        try:
            import yaml  # noqa: F401

            path = folder() / "registry.yaml"
        except ImportError:
            path = folder() / "registry.json"
    try:
        return build(read_raw(path))
    except OSError as error:
        raise InputError(f"the registry {path} cannot be read: {error.strerror or error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"the registry {path} is not what it should be: {error}") from error


def build(raw: Mapping[str, Any]) -> Registry:
    """Checked dataclasses out of plain data."""
    peers: dict[str, Peer] = {}
    for name, fields in raw["peers"].items():
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        peers[name] = Peer(name, **given)
    operators = {name: Operator(**{"operator": name, **fields}) for name, fields in raw["operators"].items()}
    registry = Registry(operators, raw["networks"], peers, raw["tolerances"], raw["groups"])
    for peer in peers.values():
        nearest("layout", [peer.layout], ("caller", *LAYOUTS))
        nearest("direction", peer.directions, DIRECTIONS)
        nearest("group", peer.groups, GROUPS)
    for group in GROUPS:
        for kind in ("cpu", "cuda"):
            for grid in registry.grids(group, kind) + registry.grids(group, kind, quick=True):
                nearest("peer", grid.peers, peers)
                nearest("dtype", grid.dtypes, DTYPES)
                nearest("direction", grid.directions, DIRECTIONS)
                nearest("layout", grid.layouts, LAYOUTS)
                nearest("operator" if group == "ops" else "network", grid.names, registry.names(group))
                for size in grid.sizes:
                    parse_size(size)
    return registry


def main() -> None:
    raw = read_raw(folder() / "registry.yaml")
    build(raw)
    (folder() / "registry.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
