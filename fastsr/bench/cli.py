"""The commands `fastsr bench` and `fastsr profile`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsr.errors import InputError

if TYPE_CHECKING:
    from fastsr.bench.registry import Registry
    from fastsr.bench.results import ResultFile
    from fastsr.bench.run import Request

GROUPS = ("ops", "models", "train")


def add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time fastsr against its peers, checked and with the distance to the hardware",
        description="Times operators (ops), networks (models) and training steps (train) against the peers of the "
        "registry, checks every result first, and measures the machine's ceilings beside. ntire measures as the "
        "efficient super-resolution challenges do. Lists are separated by commas.",
        allow_abbrev=False,
    )
    parser.add_argument("groups", nargs="*", metavar="ops|models|train|ntire", help="(default: ops models train)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0 (default: cuda if present)")
    parser.add_argument("--names", default="", help="operators and networks")
    parser.add_argument(
        "--shape", default="", help="WIDTHxHEIGHT of the LR image or BATCHxWIDTHxHEIGHT, such as 640x360"
    )
    parser.add_argument("--dtype", default="", help="of fp32, tf32, fp16, bf16; in training, of autocast")
    parser.add_argument("--layout", default="", help="the caller's: channels_last, contiguous")
    parser.add_argument("--direction", default="", help="of forward, backward, step")
    parser.add_argument("--peers", default="", help="against whom; --list names them")
    parser.add_argument("--quick", action="store_true", help="the small grid and a tenth of the time")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row, at least 5 turns (default: 3)")
    parser.add_argument("--budget", type=float, help="seconds after which no further row is begun")
    parser.add_argument(
        "--peer-limit", type=float, default=45.0, help="seconds in which a peer must be ready; 0 for no limit (45)"
    )
    parser.add_argument("--threads", type=int, help="of the CPU (default: as many as there are cores)")
    parser.add_argument("--memory", action="store_true", help="also measure peaks on the CPU; a process for each peer")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the result goes, continued if it is there; or a folder"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page, with its plots as PNG beside it")
    parser.add_argument("--list", action="store_true", help="print what can be measured and exit")
    parser.add_argument("--lr-dir", type=Path, help="ntire: the folder of low-resolution images")
    parser.set_defaults(run=bench)


def bench(arguments: argparse.Namespace) -> int:
    from fastsr.bench.registry import load_registry, nearest

    registry = load_registry()
    if arguments.list:
        _print_list(registry)
        return 0
    if arguments.threads is not None:
        _set_threads(arguments.threads)
    groups = arguments.groups or list(GROUPS)
    nearest("benchmark", groups, (*GROUPS, "ntire"))
    if "ntire" in groups:
        if len(groups) > 1:
            raise InputError("ntire is a measurement of its own; run it without other groups")
        return _ntire(arguments)
    result = _measure(_request(arguments, groups), registry, arguments.json)
    if arguments.html:
        from fastsr.bench.page import write_page

        print(f"written: {', '.join(map(str, write_page(result.content, arguments.html)))}")
    if result.unwritable is not None:
        raise InputError(f"{result.path} could not be written ({result.unwritable}); the figures are above only")
    return 0


def _request(arguments: argparse.Namespace, groups: list[str]) -> Request:
    from fastsr.bench.machine import timed_device
    from fastsr.bench.run import Request

    if not 0 < arguments.seconds < math.inf:
        raise InputError(f"--seconds is {arguments.seconds:g}; pass a number above 0")
    if not arguments.peer_limit >= 0:
        raise InputError(f"--peer-limit is {arguments.peer_limit:g}; pass seconds, or 0 for no limit")
    return Request(
        groups=groups,
        device=timed_device(arguments.device),
        names=_list(arguments.names),
        sizes=_list(arguments.shape),
        dtypes=_list(arguments.dtype),
        layouts=_list(arguments.layout),
        directions=_list(arguments.direction),
        peers=_peers(arguments.peers),
        quick=arguments.quick,
        seconds=arguments.seconds,
        memory=arguments.memory,
        budget=arguments.budget,
        peer_limit=arguments.peer_limit or None,
    )


def _measure(request: Request, registry: Registry, path: Path | None) -> ResultFile:
    from tqdm import tqdm

    from fastsr.bench import text
    from fastsr.bench.machine import environment, file_name
    from fastsr.bench.run import run

    if path is not None and path.is_dir():
        path = path / file_name(environment(request.device), "-".join(request.groups))

    def told(row: dict[str, Any]) -> None:
        tqdm.write(text.line(row), file=sys.stdout)
        sys.stdout.flush()

    result = run(
        request,
        registry,
        path,
        told,
        lambda cases: tqdm(cases, desc="fastsr bench", unit="row", file=sys.stderr, disable=None),
    )
    print("\n".join(text.closing(result.content)))
    if path is not None and result.unwritable is None:
        print(f"written: {path}")
    return result


def _ntire(arguments: argparse.Namespace) -> int:
    if arguments.lr_dir is None:
        raise InputError("ntire needs the challenge's low-resolution images; pass their folder as --lr-dir")
    from fastsr.bench.machine import timed_device
    from fastsr.bench.ntire import measure, table

    found = measure(arguments.lr_dir, timed_device(arguments.device), _list(arguments.names))
    print(table(found))
    if arguments.json:
        from fastsr._files import atomic_write

        try:
            atomic_write(arguments.json, (json.dumps(found, indent=1) + "\n").encode())
        except OSError as error:
            raise InputError(f"{arguments.json} cannot be written: {error.strerror or error}") from error
    return 0


def add_profile(commands: Any) -> None:
    parser = commands.add_parser(
        "profile",
        help="where the time and the memory of a network go",
        description="Runs a forward, or with --train a forward, an L1 loss and a backward, under PyTorch's profiler: "
        "operators and kernels by time, with launches, shares and the least time by the roofline model.",
        allow_abbrev=False,
    )
    parser.add_argument("network", help="a name that `fastsr models` prints, or a checkpoint")
    parser.add_argument("--scale", type=int, help="of the network (default: the smallest)")
    parser.add_argument("--shape", help="of the LR image (default: 256x256, with --train 4x48x48)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0 (default: cuda if present)")
    parser.add_argument("--dtype", default="fp32", help="fp32, tf32, fp16 or bf16; with --train, of autocast")
    parser.add_argument("--backend", help="which kernels (default: FASTSR_BACKEND, or auto)")
    parser.add_argument("--train", action="store_true", help="a training step instead of a forward")
    parser.add_argument("--rows", type=int, default=20, help="of the table of kernels (default: 20)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace (chrome://tracing, Perfetto)")
    parser.add_argument("--memory", type=Path, metavar="PNG", help="draw what is allocated over the step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables as JSON")
    parser.set_defaults(run=profile)


def profile(arguments: argparse.Namespace) -> int:
    import fastsr
    from fastsr.bench.profile_command import run

    with fastsr.backend(arguments.backend or fastsr.current_backend()):
        return run(arguments)


def _print_list(registry: Registry) -> None:
    print("operators: " + ", ".join(registry.operators))
    print("networks:  " + ", ".join(registry.networks))
    print("peers:     " + "; ".join(registry.peers))


def _set_threads(count: int) -> None:
    import torch

    if count < 1:
        raise InputError(f"--threads is {count}; pass 1 or more")
    torch.set_num_threads(count)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _peers(text: str) -> list[str]:
    """Names of peers; a comma with a blank behind it is part of a name."""
    marked = text.replace(", ", "\0")
    return [part.strip().replace("\0", ", ") for part in marked.split(",") if part.strip()]
