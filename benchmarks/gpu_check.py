"""`make gpu-check`: all that a GPU machine is asked for, in one command, within 9 minutes, with nothing installed.

Builds, tests, measures the ceilings, times operators, networks and training, and has compute-sanitizer look at small
calls where it is installed. Each step has a time limit of its own and a log; one that fails or is cut off does not lose
the others, and what it had written stays. Steps:

    make gpu-check OUT=folder                     all of them
    make gpu-check OUT=folder STEPS="test ops"    some, which share the time of all

The folder then holds check.json (each step's state), a log a step, and the results of `fastsr bench` as JSON. Only the
standard library is used here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sanitize import ABSENT, INCOMPLETE

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 535.0  # seconds, for all steps
STATES = {0: "ok", ABSENT: "absent", INCOMPLETE: "incomplete"}  # by a step's exit status; any other has failed
_GRACE = 5.0  # seconds between being asked to end and being ended


@dataclass(frozen=True)
class Step:
    """A command and how long it may take, in seconds."""

    name: str
    command: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """What became of a step: ok, failed, timeout, incomplete (it ended in time, before all was looked at), absent (its
    tool is not installed) or skipped for want of time.
    """

    name: str
    state: str
    status: int | None
    seconds: float
    limit: float
    log: str


def bench(out: Path, device: str, name: str, limit: float, *arguments: str) -> Step:
    """A step that ends by itself shortly before its limit."""
    given = ("--device", device, "--json", str(out / f"{name}.json"), "--budget", "{budget}", "--seconds", "1")
    return Step(name, (sys.executable, "-m", "fastsr", "bench", *arguments, *given), limit)


def all_steps(out: Path, device: str) -> list[Step]:
    """The most telling ones first, what compiles for long last; the limits add up to TOTAL.

    A row is written when all its peers are done: those that compile must share the time of the step for one.
    """
    python = sys.executable
    plain = "fastsr,fastsr triton,fastsr cuda,eager,eager channels_last"
    graphs = "fastsr,fastsr graph,eager,eager channels_last,eager graph,eager channels_last graph"
    compiled = "fastsr,fastsr graph,compile channels_last,compile max-autotune-no-cudagraphs,hand-tuned"
    half, image, patches = ("--dtype", "fp16"), ("--shape", "640x360"), ("--shape", "64x48x48")
    nets, small_first = ("--names", "alkdnet,mlrn"), ("--names", "mlrn,alkdnet", "--peer-limit", "{third}")
    return [
        Step("build", (python, "setup.py", "-q", "build_ext", "--inplace"), 120),
        Step("info", (python, "-m", "fastsr", "info"), 15),
        Step("test", (python, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-v"), 100),
        Step("ceilings", (python, "-m", "fastsr.bench.machine", device), 20),
        bench(out, device, "ops", 55, "ops", *half, *image, "--direction", "forward", "--peers", plain),
        bench(out, device, "models", 45, "models", *half, *image, *nets, "--peers", graphs),
        bench(out, device, "train", 35, "train", "--dtype", "bf16", *patches, *nets, "--peers", graphs),
        bench(out, device, "backward", 35, "ops", *half, *patches, "--direction", "backward", "--peers", plain),
        Step("sanitize", (python, "-m", "benchmarks.sanitize", "--budget", "{budget}"), 50),
        bench(out, device, "compile", 60, "models", *half, *image, *small_first, "--peers", compiled),
    ]


def chosen_steps(steps: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """Those in `names`, all if it is empty; some share the time that all would have had.

    Raises:
        SystemExit: a name is unknown.
    """
    unknown = set(names) - {step.name for step in steps}
    if unknown:
        known = ", ".join(step.name for step in steps)
        raise SystemExit(f"gpu-check: no step is called {', '.join(sorted(unknown))}; there are {known}")
    chosen = [step for step in steps if not names or step.name in names]
    stretch = sum(step.limit for step in steps) / sum(step.limit for step in chosen)
    return [Step(step.name, step.command, step.limit * stretch) for step in chosen]


def run_step(step: Step, limit: float, log: Path) -> Outcome:
    """Runs a step for at most `limit` seconds, with all it prints in `log`; its children end with it."""
    begin = time.monotonic()
    budget = max(limit - 15, limit / 2)
    command = [part.format(budget=f"{budget:.0f}", third=f"{budget / 3:.0f}") for part in step.command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment.setdefault("FASTSR_CUDA", "native")  # all architectures would take the build's time several times over
    environment.setdefault("FASTSR_BUILD", "1")  # or a build that failed would be a step that is ok
    with log.open("wb") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )
        except OSError as error:
            file.write(f"gpu-check: {error}\n".encode())
            return Outcome(step.name, "failed", None, time.monotonic() - begin, limit, log.name)
        status = _wait(process, limit)
        if status is None:
            file.write(f"\ngpu-check: cut off after {limit:.0f} s\n".encode())
    state = "timeout" if status is None else STATES.get(status, "failed")
    return Outcome(step.name, state, status, round(time.monotonic() - begin, 1), limit, log.name)


def _hear_interrupts() -> None:
    """What a shell starts in the background ignores them, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit status, or None if the time was over: then the process and its children are ended."""
    try:
        return process.wait(limit)
    except BaseException as error:
        # Interrupted, pytest still tells which tests failed and how.
        for how, patience in ((signal.SIGINT, _GRACE), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, how)  # it leads a session of its own
                process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def run_steps(steps: Sequence[Step], out: Path, total: float = TOTAL) -> list[Outcome]:
    """Runs the steps one after another within `total` seconds and keeps check.json after each.

    What a step leaves of its time goes to the next.
    """
    out.mkdir(parents=True, exist_ok=True)
    begin, spare, outcomes = time.monotonic(), 0.0, []
    for number, step in enumerate(steps):
        left = total - (time.monotonic() - begin) - _GRACE
        log = out / f"{number}-{step.name}.log"
        if left < min(step.limit, 1.0):
            outcome = Outcome(step.name, "skipped", None, 0.0, step.limit, "")
        else:
            print(f"gpu-check: {step.name} ...", flush=True)
            limit = min(step.limit + spare, left)
            outcome = run_step(step, limit, log)
            spare = max(0.0, limit - outcome.seconds)
        outcomes.append(outcome)
        print(f"gpu-check: {outcome.name} {outcome.state}, {outcome.seconds:.0f} s", flush=True)
        if outcome.state not in ("ok", "skipped"):
            print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-8:]), flush=True)
        _keep(out / "check.json", outcomes)
    return outcomes


def _keep(path: Path, outcomes: Sequence[Outcome]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description="Checks and measures on a GPU machine.")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="where logs and results go")
    parser.add_argument("--steps", default="", help="names of steps, all by default")
    parser.add_argument("--device", default="cuda", help="cpu to try the command itself out")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    steps = chosen_steps(all_steps(out, arguments.device), arguments.steps.replace(",", " ").split())
    outcomes = run_steps(steps, out)
    print(f"gpu-check: logs and results are in {out}")
    return int(any(outcome.state not in ("ok", "absent") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
