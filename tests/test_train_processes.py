"""Launchers: a port in use, one process, what several say of wrong input."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from train_helpers import photographs, tiny

from fastsr import load
from fastsr.errors import InputError
from fastsr.train import train
from fastsr.train.checkpoint import list_states
from fastsr.train.processes import Processes

ROOT = str(Path(__file__).parents[1])
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastsr"]


def test_a_port_in_use_is_one_sentence_and_status_2(tmp_path):
    recipe = tiny(tmp_path)
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, "-m", "fastsr", "train", str(tmp_path / "run.yaml")],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **place},
        )
    said = [line for line in done.stderr.splitlines() if line.startswith("fastsr: error:")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(said) == 1 and f"the port {port}, where the processes should meet, is in use" in said[0]
    assert not recipe.folder.exists()


def test_processes_that_cannot_meet_are_told(monkeypatch):
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "nowhere",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))

    def refuse(*_, **__):
        raise dist.DistNetworkError("no such host\nmore")

    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(InputError, match=r"cannot be connected \(no such host\)"):
        Processes("cpu")


def test_wrong_input_under_torchrun_ends_all_processes_at_once(tmp_path):
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    done = subprocess.run(
        [*TORCHRUN, "train", str(tmp_path / "run.yaml"), "data.hr=nowhere"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode and "fastsr: error: nowhere is not a folder" in done.stderr
    assert "exitcode  : 2" in done.stderr


def test_nodes_that_share_no_folder_continue_together(tmp_path):
    """Only the first process has the run's folder, as on several nodes: it reads the checkpoint for all."""
    photographs(tmp_path / "hr")
    whole = tiny(tmp_path, "name=whole")
    train(whole)
    recipe = tiny(tmp_path, "saving.folder=runs")
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    nodes = [tmp_path / name for name in ("first", "second")]
    for node in nodes:
        node.mkdir()
    for folder in _started_apart(tmp_path / "run.yaml", nodes):
        states = list_states(folder)
        assert [path.name for path in states] == (
            ["step_00000003.state", "step_00000006.state"] if "first" in str(folder) else []
        )
        for path in states[1:]:
            path.unlink()
    first, second = _started_apart(tmp_path / "run.yaml", nodes)
    assert not second.exists()
    alone, together = (load(folder / "last.safetensors").state_dict() for folder in (whole.folder, first))
    for key in alone:
        assert (alone[key] - together[key]).abs().max() <= 2e-5


def _started_apart(recipe, nodes):
    """A process of the run in each folder, to the end; the run's folder of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": str(len(nodes)), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "fastsr", "train", str(recipe)],
            cwd=node,
            env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank, node in enumerate(nodes)
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0] * len(nodes)
    finally:
        for process in running:
            process.kill()
    return [node / "runs" / "tiny" for node in nodes]
