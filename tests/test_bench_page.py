"""The page of a result: whole, self-contained, and a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from fastsr.bench.page import write_page
from fastsr.bench.results import load_all
from fastsr.errors import InputError

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def example() -> dict:
    """Two operators, one of them losing and noisy, a failed row, peers without a time, text that HTML must escape."""

    def timed(ms: float, **more: float) -> dict:
        shares = {"gbs": 4 / ms, "copy_share": 0.4 / ms, "gflops": 40 / ms, "rate_share": 0.2 / ms}
        return {"ms": ms, "p20": 0.9 * ms, "p80": 1.1 * ms, "runs": 9, **shares, **more}

    def row(name: str, group: str = "ops", **more: object) -> dict:
        base = {"id": f"{group}/{name}/64x64/fp32/channels_last/forward", "group": group, "name": name, "size": "64x64"}
        base |= {
            "dtype": "fp32",
            "layout": "channels_last",
            "direction": "forward",
            "session": 0,
            "not_asked": ["compile"],
        }
        return {**base, "best_peer": None, "ratio": None, "peers": {}, **more}

    work = {"bytes": 4_000_000, "dense_macs": 20_000_000, "depthwise_macs": 0, "instructions": 0}
    measured = {"work": work, "floor_ms": 0.4, "bound": "memory", "noise": {"spread": 0.01, "steal": None}}
    failing = {"reason": "ValueError: 3 < 5 & <script>alert(1)</script>"}
    peers = {"fastsr": timed(0.5, peak_mb=12.0), "eager": timed(2.0), "openvino": failing}
    slower = {"fastsr": timed(2.0), "eager": timed(1.0)}
    reason = "needs about 900 GiB"
    rows = [
        row("fast", peers=peers, ratio=4.0, best_peer="eager", noisy=False, **measured),
        row("slow", peers=slower, ratio=0.5, best_peer="eager", noisy=True, **measured),
        row("huge", group="models", reason=reason, peers={"fastsr": {"reason": reason}}),
    ]
    environment = {"date": "2026-01-02", "commit": None, "changed": True, "kind": "cpu", "device": "A & B"}
    ceilings = {"copy_gbs": 10.0, "fma_gflops": 200.0, "sgemm_gflops": None}
    sessions = [{"date": "2026-01-02", "ceilings": ceilings}]
    return {
        "version": 2,
        "environment": environment,
        "settings": {},
        "sessions": sessions,
        "finished": True,
        "rows": rows,
    }


def test_the_page_says_all_of_it_and_needs_nothing_else(tmp_path: Path) -> None:
    page, *pictures = write_page(example(), tmp_path / "new" / "page.html")
    content = page.read_text()
    for said in (
        "0.500",
        "4.00",
        "noisy",
        "needs about 900 GiB",
        "A &amp; B",
        "3 &lt; 5 &amp; &lt;script&gt;",
        "with changes",
    ):
        assert said in content
    assert "<script" not in content and not re.search(r"""(src|href)=(?!"data:)""", content)
    assert [p.name for p in pictures] == ["page-roofline-fp32.png", "page-bars-ops-forward-64x64-fp32.png"]
    for picture in pictures:
        with PIL.Image.open(picture) as image:
            assert image.width > 500 and len(set(image.convert("L").resize((40, 40)).tobytes())) > 5
    HTMLParser().feed(content)


@pytest.mark.parametrize("path", [path for path, _ in load_all(RESULTS)], ids=lambda path: path.stem)
def test_pages_of_the_results_that_are_kept(path: Path, tmp_path: Path) -> None:
    from fastsr.bench.results import load

    assert path.stem in str(write_page(load(path), tmp_path / f"{path.stem}.html")[0])


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_page(example(), tmp_path / "file" / "page.html")


def test_a_browser_shows_it(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a headless browser, one of {', '.join(BROWSERS)}")
    page = write_page(example(), tmp_path / "page.html")[0]
    shot = tmp_path / "shot.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [browser, *flags, "--window-size=1200,1000", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert shot.exists(), done.stderr
    dumped = subprocess.run([browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=False)
    assert dumped.stdout.count("<tr>") > 10 and dumped.stdout.count("<img") == 2
    with PIL.Image.open(shot) as image:
        grey = image.convert("L")
        assert image.size == (1200, 1000) and grey.getextrema()[0] < 80 < 250 < grey.getextrema()[1]
        assert len(set(grey.crop((0, 60, 1200, 600)).tobytes())) > 20  # more than one colour: there is text
