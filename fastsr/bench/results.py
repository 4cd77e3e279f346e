"""Results as JSON: one file a run, written whole after every row, continued where it ended, old forms read too.

schema.json says what a file holds; `load` gives that form for files written before it existed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastsr._files import atomic_write
from fastsr.bench.registry import Peer
from fastsr.errors import InputError

log = logging.getLogger(__name__)

VERSION = 2
SCHEMA = Path(__file__).with_name("schema.json")
# A run may be continued on the same code, machine and settings only.
_SAME = ("commit", "changed", "kind", "device", "threads", "torch", "cpu_isa")

Result = dict[str, Any]
Row = dict[str, Any]


class ResultFile:
    """A result that grows by rows, on disk if it has a path."""

    def __init__(self, path: Path | None, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Opens `path` for a new run, or to go on with the run in it.

        A file that is not whole JSON is moved aside to <name>.broken, and told.

        Raises:
            InputError: it holds another run.
        """
        self.path = path
        self.unwritable: str | None = None
        self.content: Result = {
            "version": VERSION,
            "environment": dict(environment),
            "settings": dict(settings),
            "sessions": [],
            "finished": False,
            "rows": [],
        }
        if path is not None and path.exists():
            self._resume(path)

    def _resume(self, path: Path) -> None:
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._set_aside(path, error)
            return
        if not isinstance(old, dict) or old.get("version") != VERSION:
            raise InputError(f"{path} is there already and no result of this version; pass another file to --json")
        mine = self.content
        different = [
            f"{key} {old['environment'].get(key)!r}, now {mine['environment'].get(key)!r}"
            for key in _SAME
            if old["environment"].get(key) != mine["environment"].get(key)
        ]
        if old["settings"] != mine["settings"]:
            different.append("settings")
        if different:
            raise InputError(
                f"{path} holds another run ({'; '.join(different)}); pass another file to --json, or remove it"
            )
        self.content = {**old, "finished": False}

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(path.name + ".broken")
        log.warning(
            "%s cannot be read as JSON (%s); it is kept as %s, and the run starts anew", path, error, aside.name
        )
        try:
            path.replace(aside)
        except OSError as problem:
            log.warning("%s cannot be moved aside: %s", path, problem.strerror or problem)

    def begin(self, session: Mapping[str, Any]) -> None:
        """A process starts or goes on: what it measured of the machine."""
        self.content["sessions"].append(dict(session))
        self._write()

    @property
    def ceilings(self) -> dict[str, Any]:
        """Of the session at hand."""
        found: dict[str, Any] = self.content["sessions"][-1]["ceilings"]
        return found

    def has(self, row_id: str, peers: list[str]) -> bool:
        """Whether the row is there with all of `peers`."""
        return any(row["id"] == row_id and set(peers) <= set(row["peers"]) for row in self.content["rows"])

    def add(self, row: Row) -> None:
        """Adds a row, in the place of one of the same name, and writes the file."""
        row["session"] = len(self.content["sessions"]) - 1
        rows = self.content["rows"]
        rows[:] = [other for other in rows if other["id"] != row["id"]] + [row]
        self._write()

    def finish(self) -> None:
        self.content["finished"] = True
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, (json.dumps(self.content, indent=1) + "\n").encode())
            self.unwritable = None
        except OSError as error:
            if self.unwritable is None:
                log.error("%s cannot be written (%s); the run goes on without it", self.path, error.strerror or error)
            self.unwritable = error.strerror or str(error)


def best_peer(row: Mapping[str, Any]) -> tuple[str, float] | None:
    """The fastest peer that is not fastsr and its median, or None if none ran."""
    timed = [(found["ms"], name) for name, found in row["peers"].items() if "ms" in found and not Peer(name).ours]
    return (min(timed)[1], min(timed)[0]) if timed else None


def ratio(row: Mapping[str, Any], name: str = "fastsr") -> float | None:
    """How many times faster `name` is than the best peer."""
    best, mine = best_peer(row), row["peers"].get(name, {})
    return best[1] / mine["ms"] if best and "ms" in mine else None


def load(path: Path) -> Result:
    """The result in a file, in today's form.

    Raises:
        InputError: it cannot be read, or is no benchmark result.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not whole JSON ({error}); it may be from a run that was cut off") from error
    if not isinstance(content, dict) or "rows" not in content or "environment" not in content:
        raise InputError(f"{path} is no benchmark result: it has no rows or no environment")
    return content if content.get("version") == VERSION else _modernised(content)


def load_all(folder: Path) -> Iterator[tuple[Path, Result]]:
    """Every benchmark result in a folder, by name; files of other kinds (scores, loaders) are left out."""
    for path in sorted(folder.glob("*.json")):
        if not {"checkpoints", "loader"} & json.loads(path.read_text(encoding="utf-8")).keys():
            yield path, load(path)


_OLD_DIRECTIONS = {"ops": "forward", "models": "forward", "memory": "forward", "train": "step"}
_NOT_ASKED = "not asked for"


def _modernised(old: Result) -> Result:
    """A result of the first form: CPU, float32, channels last, and a row named like "alkdnet 256x256"."""
    ceilings = old.get("ceilings") or {"sgemm_gflops": old.get("sgemm_gflops")}
    return {
        "version": VERSION,
        "environment": {"kind": "cpu", "changed": False, **old["environment"]},
        "settings": {},
        "sessions": [{"date": old["environment"]["date"], "ceilings": ceilings}],
        "finished": True,
        "rows": [_modern_row(row) for row in old["rows"]],
    }


def _modern_row(old: Row) -> Row:
    name, *_, size = old["case"].split()
    group = "models" if old["group"] == "memory" else old["group"]
    direction = _OLD_DIRECTIONS[old["group"]]
    asked = {peer: found for peer, found in old["peers"].items() if found.get("reason") != _NOT_ASKED}
    row: Row = {
        "id": "/".join((group, name, size, "fp32", "channels_last", direction)),
        "group": group,
        "name": name,
        "size": size,
        "dtype": "fp32",
        "layout": "channels_last",
        "direction": direction,
        "session": 0,
        "peers": asked,
        "not_asked": [peer for peer in old["peers"] if peer not in asked],
    }
    best = best_peer(row)
    said = {"noisy": old["noisy"]} if "noisy" in old else {}
    return {**row, **said, "best_peer": best[0] if best else None, "ratio": ratio(row)}
