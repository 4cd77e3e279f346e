"""`pytest benchmarks`: small by default, JSON, comparison with an earlier run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark")

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    options = [
        "-p",
        "no:cacheprovider",
        "--bench-device",
        "cpu",
        "--bench-shape",
        "20x17",
        f"--benchmark-storage={folder}",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", *options, *arguments]
    # Not as a part of the run that these tests belong to: its processes write no results.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)


def test_json_and_comparison(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    first = run("-k", "pixel_norm", "--benchmark-autosave", f"--benchmark-json={path}", folder=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads(path.read_text())["benchmarks"]
    assert [b["extra_info"]["peer"] for b in found] == ["fastsr", "eager channels_last"]
    assert {b["group"] for b in found} == {"ops/pixel_norm/20x17/fp32/channels_last/forward"}
    assert all(b["stats"]["rounds"] >= 5 and b["extra_info"]["work"]["bytes"] > 0 for b in found)
    second = run("-k", "pixel_norm", "--benchmark-compare", folder=tmp_path)
    assert second.returncode == 0 and "0001" in second.stdout, second.stdout + second.stderr


def test_a_missing_peer_is_skipped_with_its_reason(tmp_path: Path) -> None:
    done = run("-k", "pixel_norm", "--bench-peers", "fastsr triton", "-rs", folder=tmp_path)
    assert done.returncode == 0 and "not for cpu" in done.stdout, done.stdout + done.stderr


def test_unknown_names(tmp_path: Path) -> None:
    done = run("--bench-peers", "fastsr,eagre", folder=tmp_path)
    assert done.returncode != 0 and "did you mean 'eager'" in done.stdout + done.stderr
