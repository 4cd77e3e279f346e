"""The steps of `make gpu-check`, with commands that need no GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks import gpu_check, sanitize  # noqa: E402
from benchmarks.gpu_check import TOTAL, Step, all_steps, chosen_steps, run_steps  # noqa: E402


def python(name: str, code: str, limit: float = 60.0) -> Step:
    return Step(name, (sys.executable, "-c", code), limit)


def test_a_failing_step_does_not_lose_the_others(tmp_path: Path) -> None:
    steps = [
        python("first", "print('one')"),
        python("broken", "import sys; print('why', file=sys.stderr); sys.exit(3)"),
        Step("missing", ("/no/such/program",), 10.0),
        python("last", "print('two')"),
    ]
    outcomes = run_steps(steps, tmp_path / "out")
    assert [(o.name, o.state, o.status) for o in outcomes] == [
        ("first", "ok", 0),
        ("broken", "failed", 3),
        ("missing", "failed", None),
        ("last", "ok", 0),
    ]
    assert "one" in (tmp_path / "out" / "0-first.log").read_text()
    assert "why" in (tmp_path / "out" / "1-broken.log").read_text()
    assert "/no/such/program" in (tmp_path / "out" / "2-missing.log").read_text()
    assert [o["state"] for o in json.loads((tmp_path / "out" / "check.json").read_text())] == [
        o.state for o in outcomes
    ]


def test_kernels_are_built_for_the_gpu_that_is_there_and_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = python("show", "import os; print(os.environ['FASTSR_CUDA'], os.environ['FASTSR_BUILD'])")
    for name in ("FASTSR_CUDA", "FASTSR_BUILD"):
        monkeypatch.delenv(name, raising=False)
    run_steps([show], tmp_path)
    assert "native 1" in (tmp_path / "0-show.log").read_text().splitlines()
    monkeypatch.setenv("FASTSR_CUDA", "0")
    monkeypatch.setenv("FASTSR_BUILD", "auto")
    run_steps([show], tmp_path)
    assert "0 auto" in (tmp_path / "0-show.log").read_text().splitlines()


def test_a_build_that_cannot_be_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because the compiler is none; what is built already stays."""
    monkeypatch.delenv("FASTSR_BUILD", raising=False)
    monkeypatch.setenv("FASTSR_CUDA", "0")
    monkeypatch.setenv("CXX", "/bin/false")
    (step,) = chosen_steps(all_steps(tmp_path, "cuda"), ["build"])
    fresh = ("--force", "--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib"))
    (outcome,) = run_steps([Step("build", (*step.command, *fresh), 120.0)], tmp_path)
    assert outcome.state == "failed", (tmp_path / "0-build.log").read_text()


def test_tests_that_are_cut_off_tell_which_failed_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_GRACE", 60.0)  # a busy machine takes its time to print a report
    (tmp_path / "test_slow.py").write_text(
        "import time\ndef test_wrong(): assert 1 + 1 == 3\ndef test_long(): time.sleep(600)\n"
    )
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", str(tmp_path / "test_slow.py"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        (outcome,) = run_steps([Step("test", command, 20.0)], tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    log = (tmp_path / "out" / "0-test.log").read_text()
    assert outcome.state == "timeout" and "assert (1 + 1) == 3" in log and "1 failed" in log


def test_a_step_that_hangs_is_cut_off_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_GRACE", 0.5)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    code = (
        "import subprocess, sys, time; print('before', flush=True);"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); time.sleep(600)"
    )
    (hung, after) = run_steps([python("hung", code, 3.0), python("after", "")], tmp_path)
    assert (hung.state, hung.status, after.state) == ("timeout", None, "ok")
    log = (tmp_path / "0-hung.log").read_text()
    assert "before" in log and "cut off after 3 s" in log
    pid = int(log.splitlines()[2])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        os.kill(pid, 9)
        pytest.fail("the child lives on")


def test_the_whole_keeps_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_GRACE", 0.2)
    steps = [python("long", "import time; time.sleep(600)", 500.0), python("late", "", 50.0)]
    long, late = run_steps(steps, tmp_path, total=2.0)
    assert long.state == "timeout" and long.limit < 2.0
    assert late.state == "skipped"


def test_what_a_step_leaves_of_its_time_goes_to_the_next(tmp_path: Path) -> None:
    steps = [python("long", "import time; time.sleep(2)", 30.0), python("short", "", 5.0), python("last", "", 5.0)]
    outcomes = run_steps(steps, tmp_path)
    assert [outcome.state for outcome in outcomes] == ["ok", "ok", "ok"]
    for before, step, outcome in zip(outcomes, steps[1:], outcomes[1:], strict=False):
        assert outcome.limit == pytest.approx(step.limit + before.limit - before.seconds)


def test_what_compiles_shares_the_time_for_one_row(tmp_path: Path) -> None:
    (step,) = [step for step in all_steps(tmp_path, "cuda") if step.name == "compile"]
    peers = step.command[step.command.index("--peers") + 1].split(",")
    assert sum("compile" in peer or "hand-tuned" in peer for peer in peers) == 3
    show = Step("show", (sys.executable, "-c", "import sys; print(*sys.argv)", *step.command[4:]), 60.0)
    run_steps([show], tmp_path)
    assert "--peer-limit 15" in (tmp_path / "0-show.log").read_text().splitlines()[-1]


def test_the_real_steps_fit_into_nine_minutes(tmp_path: Path) -> None:
    steps = all_steps(tmp_path, "cuda")
    assert sum(step.limit for step in steps) == TOTAL < 540
    names = [step.name for step in steps]
    assert {"build", "test", "ceilings", "ops", "models", "train"} <= set(names) and len(set(names)) == len(names)
    some = chosen_steps(steps, ["test", "ops"])
    assert [step.name for step in some] == ["test", "ops"]
    assert sum(step.limit for step in some) == pytest.approx(TOTAL)
    with pytest.raises(SystemExit, match="no step is called tset; there are build, info"):
        chosen_steps(steps, ["tset"])


def test_the_real_steps_name_what_the_registry_knows(tmp_path: Path) -> None:
    """What they ask `fastsr bench` for is parsed and checked as there; only the device is another one."""
    import argparse

    from fastsr.bench.cli import _request, add_bench
    from fastsr.bench.registry import load_registry
    from fastsr.bench.run import check, jobs

    parser = argparse.ArgumentParser()
    add_bench(parser.add_subparsers())
    for step in all_steps(tmp_path, "cpu"):
        if "bench" not in step.command:
            continue
        arguments = parser.parse_args([part.format(budget="9", third="3") for part in step.command[3:]])
        request = _request(arguments, arguments.groups)
        check(request, load_registry())
        assert list(jobs(request, load_registry()))


FAKE_SANITIZER = """#!/bin/sh
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@"
[ "$2" = memcheck ] && exit {memcheck}
exit {racecheck}
"""


def fake_sanitizer(program: Path, monkeypatch: pytest.MonkeyPatch, memcheck: int, racecheck: int) -> None:
    """A toolkit's compute-sanitizer whose tools end with these."""
    program.parent.mkdir()
    program.write_text(FAKE_SANITIZER.format(memcheck=memcheck, racecheck=racecheck))
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(program.parents[1]))
    monkeypatch.setenv("PATH", os.defpath)


@pytest.mark.parametrize("place", ("bin", "compute-sanitizer"))
def test_both_tools_look_and_one_finding_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fake_sanitizer(tmp_path / place / "compute-sanitizer", monkeypatch, memcheck=0, racecheck=1)
    (step,) = chosen_steps(all_steps(tmp_path, "cuda"), ["sanitize"])
    (outcome,) = run_steps([step], tmp_path)
    assert (outcome.state, outcome.status) == ("failed", 1)
    log = (tmp_path / "0-sanitize.log").read_text()
    for tool, status in (("memcheck", 0), ("racecheck", 1)):
        assert f"1 --tool {tool} --error-exitcode 1 --kernel-name kernel_substring=fastsr" in log
        assert f"sanitize: {tool} ended with {status}" in log
    assert str(sanitize.CALLS) in log and sanitize.CALLS.exists()


@pytest.mark.parametrize(("memcheck", "racecheck"), [(75, 0), (0, 75), (75, 75), (75, 1), (1, 75)])
def test_calls_that_were_not_reached_are_not_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memcheck: int, racecheck: int
) -> None:
    """What a tool found counts for more."""
    fake_sanitizer(tmp_path / "bin" / "compute-sanitizer", monkeypatch, memcheck, racecheck)
    assert gpu_check.main(["--out", str(tmp_path), "--steps", "sanitize"]) == 1
    (outcome,) = json.loads((tmp_path / "check.json").read_text())
    want = ("failed", 1) if 1 in (memcheck, racecheck) else ("incomplete", sanitize.INCOMPLETE)
    assert (outcome["state"], outcome["status"]) == want


def test_a_time_that_is_over_is_the_status_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(sanitize.CALLS.parent))
    import sanitized_calls

    made: list[str] = []
    three = [(name, "ieee", lambda name=name: made.append(name)) for name in "abc"]
    monkeypatch.setattr(sanitized_calls, "calls", lambda device: iter(three))
    monkeypatch.setattr(sanitized_calls.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(sys, "argv", ["sanitized_calls"])
    assert sanitized_calls.main() == 0 and made == ["a", "b", "c"]
    monkeypatch.setattr(sys, "argv", ["sanitized_calls", "--until", "0"])
    assert sanitized_calls.main() == sanitized_calls.INCOMPLETE == sanitize.INCOMPLETE
    assert made == ["a", "b", "c"]


def test_a_missing_sanitizer_is_said_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if sanitize.find_sanitizer() is not None:
        pytest.skip("compute-sanitizer is installed")
    assert gpu_check.main(["--out", str(tmp_path), "--steps", "sanitize"]) == 0
    shown = capsys.readouterr().out
    assert "sanitize absent" in shown and "compute-sanitizer is not installed: it comes with the CUDA toolkit" in shown
    assert json.loads((tmp_path / "check.json").read_text())[0]["state"] == "absent"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_a_step_says_so_in_a_sentence(tmp_path: Path) -> None:
    for outcome in run_steps(chosen_steps(all_steps(tmp_path, "cuda"), ["ceilings", "ops"]), tmp_path):
        log = (tmp_path / outcome.log).read_text()
        assert outcome.state == "failed" and "Traceback" not in log, log
        assert "fastsr: error: the device 'cuda' cannot be used here" in log


def test_make(tmp_path: Path) -> None:
    command = [
        "make",
        "-C",
        str(ROOT),
        "gpu-check",
        f"PYTHON={sys.executable}",
        f"OUT={tmp_path / 'out'}",
        "STEPS=info",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "info ok" in done.stdout and "operators" in (tmp_path / "out" / "0-info.log").read_text()


BARE = """
import sys
for name in ("yaml", "msgspec", "cv2", "hypothesis", "skimage", "lmdb", "onnx", "onnxruntime", "openvino"):
    sys.modules[name] = None
from fastsr.cli import main
import fastsr.bench.machine
fastsr.bench.machine._SECONDS = 0
sys.exit(main(["bench", "ops", "train", "--names", "pixel_norm,mlrn", "--shape", "16x16", "--quick", "--device", "cpu",
               "--peers", "fastsr,eager,openvino", "--seconds", "0.1", "--json", sys.argv[1], "--budget", "100"]))
"""


def test_runs_with_what_a_gpu_machine_has(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path / "x.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["peers"]["openvino"]["reason"] for row in rows] == [
        "openvino is not installed: pip install onnx onnxscript onnxruntime openvino",
        "runs forward only",
    ]
    assert all(row["ratio"] for row in rows)
