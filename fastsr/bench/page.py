"""A result as one self-contained HTML page, with its plots as PNG files beside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from fastsr._files import atomic_write
from fastsr.bench import text
from fastsr.bench.results import Result, Row, best_peer
from fastsr.errors import InputError, MissingPackageError

TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(result: Result, path: Path) -> list[Path]:
    """Writes the page and `<page's name>-<plot>.png` for each plot; returns all of them.

    Raises:
        InputError: the folder cannot be written.
        MissingPackageError: matplotlib or jinja2 is not installed.
    """
    from fastsr.bench.plots import plots, png

    pictures = [(name, caption, png(figure)) for name, caption, figure in plots(result)]
    files = [(path.with_name(f"{path.stem}-{name}.png"), data) for name, _, data in pictures]
    page = render(result, [(caption, data) for _, caption, data in pictures])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, data in [*files, (path, page.encode())]:
            atomic_write(file, data)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return [path, *(file for file, _ in files)]


def render(result: Result, pictures: list[tuple[str, bytes]]) -> str:
    """The page; `pictures` are captions with PNG data."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingPackageError("pages need jinja2, which is not installed: pip install jinja2") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["group"], []).append(_shown(row))
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        result=result,
        groups=groups,
        titles={"ops": "Operators", "models": "Networks", "train": "Training"},
        closing=text.closing(result),
        pictures=[(caption, base64.b64encode(data).decode()) for caption, data in pictures],
        peer=text.peer,
    )


def _shown(row: Row) -> dict[str, Any]:
    """The cells of a row."""
    mine, best, floor = row["peers"].get("fastsr", {}), best_peer(row), row.get("floor_ms")
    ms = mine.get("ms")
    return {
        "row": row,
        "mine": text.milliseconds(ms) if ms else "-",
        "best": f"{text.milliseconds(best[1])} {best[0]}" if best else "-",
        "ratio": f"{row['ratio']:.2f}" if row["ratio"] else "-",
        "floor": f"{text.milliseconds(floor)} {row['bound']}" if floor else "-",
        "times_floor": f"{ms / floor:.1f}" if ms and floor else "-",
        "of_copy": f"{mine['copy_share']:.0%}" if "copy_share" in mine else "-",
        "of_rate": f"{mine['rate_share']:.0%}" if "rate_share" in mine else "-",
        "peak": f"{mine['peak_mb']:.0f}" if "peak_mb" in mine else "-",
        "reason": row.get("reason"),
        "noisy": row.get("noisy", False),
        "loses": bool(row["ratio"] and row["ratio"] < 1),
        "noise": text.noise(row) if row.get("noise") else "",
    }
