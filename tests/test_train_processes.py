"""Launchers: a port in use, one process, what several say of wrong input."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist
from train_helpers import tiny

from fastsr.errors import InputError
from fastsr.train.processes import Processes

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
