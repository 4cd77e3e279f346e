"""The command line: `fastsr upscale | eval | train | tune | models | info | demo | bench | profile`.

Exit status: 0 done; 2 wrong usage, a fastsr error, or images that failed; 130 interrupted. Messages go to
stderr, results to stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsr.bench.cli import add_bench, add_profile
from fastsr.errors import FastsrError, InputError

if TYPE_CHECKING:
    from fastsr.evaluate import EvalResult
    from fastsr.models import SuperResolutionNet
    from fastsr.train import Recipe

__all__ = ["main"]

_BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line on `argv` (by default the process's) and returns the exit status."""
    logging.basicConfig(format="fastsr: %(levelname)s: %(message)s", level=logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except FastsrError as error:
        print(f"fastsr: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 0
    except KeyboardInterrupt:
        print("fastsr: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsr", description="Fast ALKDNet and MLRN image super-resolution.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True)
    own = (_add_upscale, _add_eval, _add_train, _add_tune, _add_models, _add_info, _add_demo)
    for add in (*own, add_bench, add_profile):
        add(commands)
    return parser


def _path(text: str) -> Path:
    """A file or folder; an empty name, such as that of an unset shell variable, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is an empty name; pass a file or folder, such as . for the current one")
    return Path(text)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import fastsr

        print(f"fastsr {fastsr.__version__}")
        parser.exit()


def _add_upscale(commands: Any) -> None:
    parser = commands.add_parser(
        "upscale",
        help="enlarge an image or a folder of images",
        description="Enlarges an image, or every image in a folder tree. Outputs that exist are skipped.",
        allow_abbrev=False,
    )
    parser.add_argument("-i", "--input", required=True, type=_path, help="an image or a folder")
    parser.add_argument("-o", "--output", required=True, type=_path, help="a folder, or a file for one image")
    _add_network_options(parser)
    parser.add_argument("-s", "--scale", type=int, help="the expected scale; refuses other checkpoints")
    parser.add_argument("--suffix", help='put behind the names with "_" (default: x2 and the like)')
    parser.add_argument("--ext", default="auto", help="output format such as png (default: the input's)")
    parser.add_argument(
        "-t",
        "--tile",
        type=int,
        default=0,
        help="side of tiles in pixels; changes the result (default: 0, off)",
    )
    parser.add_argument(
        "--tile-pad", "--tile_pad", type=int, default=16, help="pixels that tiles overlap (default: 16)"
    )
    parser.add_argument("--self-ensemble", action="store_true", help="mean of 8 views, 8x the time")
    parser.add_argument("--overwrite", action="store_true", help="write outputs that exist already")
    parser.set_defaults(run=_upscale)


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="score a checkpoint on a folder of images",
        description="PSNR and SSIM on Y by the protocol of the papers; LR images are made by MATLAB's bicubic.",
        allow_abbrev=False,
    )
    _add_network_options(parser)
    parser.add_argument("--hr", required=True, type=_path, help="the folder of original images")
    parser.add_argument("--lr", type=_path, help="a folder of LR images to take instead")
    parser.add_argument("--json", metavar="FILE", help='also write the scores as JSON; "-" prints only that')
    parser.set_defaults(run=_eval)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network by a recipe",
        description="Trains by a YAML recipe, or continues the run in its folder. Ctrl-C and SIGTERM save and end it.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", help="a YAML file or the name of a shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.hr=DIV2K/train optimizer.lr=5e-4"
    )
    parser.add_argument("--list", action="store_true", help="list the shipped recipes and exit")
    parser.add_argument("--show", action="store_true", help="print the whole recipe as YAML and exit")
    parser.add_argument("--speed", action="store_true", help="measure whether the loader keeps up with the steps")
    parser.add_argument("--json", metavar="FILE", help="with --speed: also write the figures as JSON")
    parser.set_defaults(run=_train)


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="measure tile sizes of the Triton kernels on this GPU",
        description="Measures tile sizes of the Triton kernels on this GPU and writes their table. Takes minutes. "
        "With --order: writes, from results of `fastsr bench ops`, which operators run in CUDA C++, which in Triton.",
        allow_abbrev=False,
    )
    parser.add_argument("operators", nargs="*", metavar="operator", help="such as alk_stage esa (default: all)")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="fp16", help="(default: fp16)")
    parser.add_argument("--order", nargs="+", type=_path, metavar="RESULT", help="results as JSON; needs no GPU")
    parser.add_argument("-o", "--output", type=_path, help="the table's file (default: the installed one)")
    parser.set_defaults(run=_tune)


def _add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the networks", allow_abbrev=False)
    parser.set_defaults(run=_models)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, devices and the backend of every operator", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="enlarge a photograph, next to bicubic", allow_abbrev=False)
    parser.add_argument("--weights", type=_path, help="a checkpoint (default: the MLRN x2 that ships)")
    parser.add_argument("--output", type=_path, default=Path("demo"), help="where the pictures go (demo)")
    parser.set_defaults(run=_demo)


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=_path, metavar="CHECKPOINT", help="a .pth or .safetensors")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0 (default: cuda if present)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--dtype", choices=sorted(_DTYPES), default="fp32", help="(default: fp32)")
    precision.add_argument("--fp32", dest="dtype", action="store_const", const="fp32", help="like --dtype fp32")
    parser.add_argument("--backend", choices=_BACKENDS, help="which kernels (default: FASTSR_BACKEND, or auto)")


def _upscale(arguments: argparse.Namespace) -> int:
    from tqdm.contrib.logging import logging_redirect_tqdm

    import fastsr
    from fastsr.upscale import upscale_path

    with fastsr.backend(arguments.backend or fastsr.current_backend()), logging_redirect_tqdm():
        net = _load(arguments)
        if arguments.scale not in (None, net.scale):
            raise InputError(
                f"{arguments.model} enlarges by {net.scale}, not by {arguments.scale}; "
                f"pass -s {net.scale} or another checkpoint"
            )
        report = upscale_path(
            net,
            arguments.input,
            arguments.output,
            suffix=arguments.suffix,
            ext=arguments.ext,
            overwrite=arguments.overwrite,
            tile=arguments.tile,
            tile_pad=arguments.tile_pad,
            self_ensemble=arguments.self_ensemble,
        )
    print(f"{len(report.written)} written, {len(report.skipped)} skipped, {len(report.failed)} failed")
    if not report.failed:
        return 0
    for path, reason in report.failed.items():
        reason = " ".join(reason.split())
        print(f"fastsr: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    print(f"fastsr: error: {len(report.failed)} of {report.total} images failed", file=sys.stderr)
    return 2


def _eval(arguments: argparse.Namespace) -> int:
    import fastsr
    from fastsr.evaluate import evaluate

    if arguments.json not in (None, "-"):
        _check_writable(Path(arguments.json))
    with fastsr.backend(arguments.backend or fastsr.current_backend()):
        result = evaluate(_load(arguments), arguments.hr, lr_dir=arguments.lr)
    if arguments.json == "-":
        print(json.dumps(result.as_dict(), indent=2))
        return 0
    print(_score_table(result))
    if arguments.json:
        _write_json(Path(arguments.json), result.as_dict())
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from tqdm.contrib.logging import logging_redirect_tqdm

    from fastsr.train import load_recipe, shipped_recipes, train

    if arguments.json and not arguments.speed:
        raise InputError("--json goes with --speed only; a run keeps its figures in training.csv and validation.csv")
    if arguments.list:
        rows = [
            (name, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
            for name, path in shipped_recipes().items()
        ]
        print(_table(rows, right=()))
        return 0
    if arguments.recipe is None:
        raise InputError("no recipe is given; pass a YAML file or a name that `fastsr train --list` prints")
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.show:
        print(recipe.as_yaml(), end="")
        return 0
    logging.getLogger("fastsr").setLevel(logging.INFO)
    if arguments.speed:
        return _train_speed(recipe, arguments.json)
    with logging_redirect_tqdm():
        train(recipe)
    return 0


def _train_speed(recipe: Recipe, json_file: str | None) -> int:
    from fastsr.bench.machine import environment, timed_device
    from fastsr.train import speed

    if json_file:
        _check_writable(Path(json_file))
    found = speed.measure(recipe)
    print(speed.text(found))
    if json_file:
        facts = environment(timed_device(recipe.compute.device))
        _write_json(Path(json_file), {"environment": facts, "loader": found})
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    import torch

    from fastsr.tune import OPERATORS, run_order, run_tune

    if arguments.order:
        if arguments.operators:
            raise InputError(f"--order takes all operators of its results; leave out {' '.join(arguments.operators)}")
        print(run_order(arguments.order, arguments.output))
        return 0
    logging.getLogger("fastsr").setLevel(logging.INFO)
    dtype = getattr(torch, _DTYPES[arguments.dtype])
    print(run_tune(arguments.operators or OPERATORS, dtype, arguments.output))
    return 0


def _models(arguments: argparse.Namespace) -> int:
    import fastsr
    from fastsr.models import model_entry

    rows = [("name", "scale", "parameters", "network")]
    for name in fastsr.list_models():
        entry = model_entry(name)
        for scale in entry.scales:
            net = fastsr.create_model(name, scale=scale)
            parameters = sum(parameter.numel() for parameter in net.parameters())
            rows.append((name, f"x{scale}", f"{parameters:,}", entry.summary))
    print(_table(rows, right=(2,)))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    import fastsr

    facts = fastsr.info()
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(_outline(facts)))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from fastsr.demo import run_demo

    run_demo(arguments.output, arguments.weights)
    return 0


def _load(arguments: argparse.Namespace) -> SuperResolutionNet:
    import torch

    import fastsr
    from fastsr._device import find_device

    device = find_device(arguments.device)
    net: SuperResolutionNet = fastsr.load(
        arguments.model, device=device, dtype=getattr(torch, _DTYPES[arguments.dtype])
    )
    return net


def _score_table(result: EvalResult) -> str:
    def number(value: float, digits: int) -> str:
        return f"{value:.{digits}f}" if math.isfinite(value) else "inf"

    rows = [("image", "PSNR-Y (dB)", "SSIM-Y")]
    rows += [(image.name, number(image.psnr, 3), number(image.ssim, 4)) for image in result.images]
    rows.append(("mean", number(result.psnr, 3), number(result.ssim, 4)))
    return _table(rows, right=(1, 2))


def _table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Aligned columns, those in `right` to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _outline(value: Any, indent: str = "") -> list[str]:
    """Nested data as indented `key: value` lines."""
    pairs = value.items() if isinstance(value, dict) else ((str(i), item) for i, item in enumerate(value))
    lines = []
    for key, item in pairs:
        if isinstance(item, (dict, list, tuple)) and item:
            lines += [f"{indent}{key}:", *_outline(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {'-' if item in (None, {}, [], ()) else item}")
    return lines


def _check_writable(path: Path) -> None:
    """Raise InputError before the work rather than after it."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        what = "it is a folder" if path.is_dir() else f"{path.parent} is no folder to write into"
        raise InputError(f"{path} cannot be written: {what}; pass another file")


def _write_json(path: Path, data: dict[str, Any]) -> None:
    from fastsr._files import atomic_write

    try:
        atomic_write(path, (json.dumps(data, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
