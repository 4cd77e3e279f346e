"""All kernels where calls are unusual: several threads, after fork, odd weights, extreme sizes."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, results
from operator_cases import BUILDERS, Case, build
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastsr
from fastsr import _dispatch, ops

pytestmark = pytest.mark.usefixtures("cpu_kernels")

OPERATORS = tuple(BUILDERS)
TASKS = Path("/proc/self/task")  # of Linux: a folder for each of a process's threads


def operator_of(name: str) -> str:
    return name.removesuffix("_plain").removesuffix("_blueprint")


def test_every_operator_has_a_case() -> None:
    assert {operator_of(name) for name in BUILDERS} == set(_dispatch.OPERATORS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_results_lie_in_memory_as_a_convolution_s_do(name: str, layout: str) -> None:
    """Also of slices: foreign code calls `.view` on what an NCHW map became."""
    case = build(name, (2, 8, 21, 19), layout)
    x = case.tensors[case.maps[0]]
    convolved = torch.nn.functional.conv2d(x, torch.ones(4, 8, 1, 1))
    formats = [f for f in (torch.contiguous_format, torch.channels_last) if convolved.is_contiguous(memory_format=f)]
    results_of = {"kernel": case.function(*case.tensors.values())}
    with FakeTensorMode() as mode:
        results_of["fake"] = case.function(*map(mode.from_tensor, case.tensors.values()))
    for out in results_of.values():
        for y in out if isinstance(out, tuple) else (out,):
            assert [y.is_contiguous(memory_format=f) for f in formats] == [True]


def run(name: str, shape: tuple[int, int, int, int], layout: str = "nhwc") -> list[Tensor]:
    case = build(name, shape, layout)
    leaves = [t.requires_grad_() for t in case.tensors.values()]
    out = case.function(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    return [*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], leaves)]


def test_python_threads_at_once() -> None:
    """Every operator in two threads beside one another, each at its own size, so that scratch memory changes hands."""
    shapes = ((1, 16, 33, 40), (2, 24, 20, 17))
    expected = {(name, shape): run(name, shape) for name in OPERATORS for shape in shapes}
    start = threading.Barrier(4)
    failures: list[str] = []

    def work(turn: int) -> None:
        start.wait()
        calls = list(expected.items())
        for (name, shape), want in calls[turn:] + calls[:turn]:
            got = run(name, shape)
            if not all(torch.equal(a, b) for a, b in zip(want, got, strict=True)):
                failures.append(f"{name} {shape}")

    threads = [threading.Thread(target=work, args=(5 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def exit_status_of_child(body: Callable[[], bool]) -> int:
    """Exit status of a forked child: 0 if `body` gives True; a child that hangs is ended by its own alarm."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        ok = False
        try:
            ok = body()
        finally:
            os._exit(0 if ok else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_child_of_fork(layout: str) -> None:
    """torch's threads do not exist in a forked child; a map of more than 32768 elements would be divided among them."""
    shape = (1, 16, 48, 50)
    expected = {name: run(name, shape, layout) for name in OPERATORS}

    def body() -> bool:
        return all(
            torch.equal(a, b)
            for name, want in expected.items()
            for a, b in zip(want, run(name, shape, layout), strict=True)
        )

    assert exit_status_of_child(body) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", ["alkdnet", "mlrn"])
def test_network_trains_in_a_child_of_fork(name: str) -> None:
    net = fastsr.create_model(name, num_block=1, scale=2)
    x = torch.rand(1, 3, 64, 64)

    def gradient_of_first_weight() -> Tensor:
        net.zero_grad()
        net(x).square().mean().backward()
        grad = next(net.parameters()).grad
        assert grad is not None
        return grad.clone()

    want = gradient_of_first_weight()
    assert exit_status_of_child(lambda: torch.allclose(gradient_of_first_weight(), want, rtol=1e-4, atol=1e-7)) == 0


def test_threads_may_be_raised_again_after_fork() -> None:
    threads = torch.get_num_threads()

    def body() -> bool:
        one = torch.get_num_threads() == 1
        torch.set_num_threads(3)
        return one and torch.get_num_threads() == 3

    assert exit_status_of_child(body) == 0
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"counts threads in {TASKS}, which is not here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kernels_make_threads_of_their_own_in_a_child_of_fork() -> None:
    """There are none of the parent's, for which a loop of torch's would wait for ever."""
    case = build("conv_mix", (1, 16, 90, 64), "nhwc")
    threads = torch.get_num_threads()

    def body() -> bool:
        torch.set_num_threads(2)
        before = len(list(TASKS.iterdir()))
        got = outputs_of(case, "cpu")
        made = len(list(TASKS.iterdir())) - before
        torch.set_num_threads(1)  # for the comparison, which is torch's
        return made == 1 and torch.equal(*want, *got)

    torch.set_num_threads(2)
    try:
        want = outputs_of(case, "cpu")
        assert exit_status_of_child(body) == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"counts threads in {TASKS}, which is not here")
@pytest.mark.parametrize(("variable", "own"), [("FASTSR_TEST_NOTHING", True), ("OMP_PROC_BIND", False)])
def test_threads_that_come_late_are_replaced(variable: str, own: bool) -> None:
    """All on one processor, which the caller is given first, torch's thread begins when that has finished.

    Where OpenMP binds threads, new ones would share the caller's processor. Either way results are equal to the bit.
    """
    program = (
        "import hashlib, os, torch, fastsr; from operator_cases import build; torch.set_num_threads(2)\n"
        "case = build('alk_conv', (1, 16, 90, 64), 'nhwc'); fastsr.backend('cpu')\n"
        "with torch.no_grad():\n"
        "    case.function(*case.tensors.values())\n"
        f"    threads = os.listdir('{TASKS}'); one = {{min(os.sched_getaffinity(0))}}\n"
        "    for thread in map(int, threads):\n"
        "        os.sched_setaffinity(thread, one)\n"
        "        if thread != os.getpid(): os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))\n"
        "    for _ in range(30):\n"
        "        y = case.function(*case.tensors.values())\n"
        f"        made = len(os.listdir('{TASKS}')) - len(threads)\n"
        "        if made: break\n"
        "print(made, hashlib.sha256(y.numpy().tobytes()).hexdigest())"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, variable: "true", "PYTHONPATH": path}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, cwd=sys.prefix, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (want,) = outputs_of(build("alk_conv", (1, 16, 90, 64), "nhwc"), "cpu")
    assert run.stdout.split() == [str(int(own)), hashlib.sha256(want.numpy().tobytes()).hexdigest()]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_all_threads_treat_small_numbers_alike() -> None:
    """torch.set_flush_denormal changes the calling thread; the others, torch's or our own, are made before it does."""
    x, weight = (torch.full(size, 1e-20) for size in ((1, 16, 90, 64), (16, 16, 1, 1)))
    x = x.to(memory_format=torch.channels_last)
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor does not flush denormal numbers")

    def body() -> bool:
        results = {}
        torch.set_num_threads(2)
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            try:
                results[flush] = [fastsr.ops.pointwise([x], weight, torch.zeros(16)) for _ in range(20)]
            finally:
                torch.set_flush_denormal(False)
        torch.set_num_threads(1)  # for the comparison, which is torch's
        return all((y > 0).all() for y in results[False]) and not any(y.any() for y in results[True])

    threads = torch.get_num_threads()
    try:
        assert body()
    finally:
        torch.set_num_threads(threads)
    if hasattr(os, "fork"):
        assert exit_status_of_child(body) == 0


def outputs_of(case: Case, backend: str) -> tuple[Tensor, ...]:
    with torch.no_grad(), fastsr.backend(backend):
        out = case.function(*case.tensors.values())
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_weight_that_is_not_finite_reaches_what_depends_on_it(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that the reference loses stays finite, and no pixel far from the borders is lost besides.

    At the borders more is: the kernels multiply such a weight by the zeros of the padding, which is NaN. In the ESA,
    whose gate comes from a few small maps, that reaches all pixels; Winograd's transform makes NaN of infinite weights.
    """
    borders_only = not name.startswith("esa") and not (name == "conv3x3_gelu" and math.isinf(value))
    # The kernels give 0, its limit, for GELU of minus infinity, where PyTorch gives NaN.
    monkeypatch.setattr(
        torch.nn.functional, "gelu", lambda x: torch.where(x == -torch.inf, 0, torch.special.ndtr(x) * x)
    )
    case = build(name, (1, 16, 49, 52))
    for key, t in case.tensors.items():
        if key in case.maps:
            continue
        changed = t.clone()
        changed.view(-1)[t.numel() // 2] = value
        spoiled = case._replace(tensors={**case.tensors, key: changed})
        wanted, gotten = outputs_of(spoiled, "reference"), outputs_of(spoiled, "cpu")
        assert math.isinf(value) or any(w.isnan().any() for w in wanted), key  # an infinite one may saturate a sigmoid
        for want, got in zip(wanted, gotten, strict=True):
            assert not (~want.isfinite() & got.isfinite()).any(), key
            extra = want.isfinite() & ~got.isfinite()
            assert not (borders_only and extra[:, :, 4:-4, 4:-4].any()), key


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_a_nan_weight(name: str) -> None:
    case = build(name, (1, 16, 26, 27))
    for i, (key, t) in enumerate(case.tensors.items()):
        if key in case.maps:
            continue
        inputs = [u.clone() for u in case.tensors.values()]
        inputs[i].view(-1)[t.numel() // 2] = torch.nan
        want, got = (results(case.function, inputs, backend) for backend in ("reference", "cpu"))
        assert not any((a.isnan() & ~b.isnan()).any() for a, b in zip(want, got, strict=True)), key


@pytest.mark.parametrize("name", OPERATORS)
def test_strides_of_zero(name: str) -> None:
    """Maps and weights that are one number, expanded, give what their contiguous copies give."""
    case = build(name)
    expanded = [(0.25 * t.flatten()[0] + 0.1).expand(t.shape) for t in case.tensors.values()]
    copies = [
        t.contiguous(memory_format=torch.channels_last) if key in case.maps else t.contiguous()
        for key, t in zip(case.tensors, expanded, strict=True)
    ]
    for a, b in zip(results(case.function, expanded, "cpu"), results(case.function, copies, "cpu"), strict=True):
        assert torch.equal(a, b)


class WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> None:
        return None


def kept_pointwise() -> list[Tensor]:
    x, weight, bias = torch.rand(1, 128, 4, 5), torch.rand(8, 128, 1, 1), torch.rand(8)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    return [ops.pointwise((leaves[0],), leaves[1], leaves[2], activation="gelu"), *leaves]


def mixer_block() -> list[Tensor]:
    dense, product = ((8, 8, 3, 3), (8,)), ((8, 8, 1, 1), (8,))
    shapes = ((1, 8, 9, 9), *dense, *dense, (8, 1, 3, 3), (8,), *product, *product)
    leaves = [torch.rand(*shape).requires_grad_() for shape in shapes]
    return [ops.mixer_block(*leaves), *leaves]


@pytest.mark.parametrize("name", [*BUILDERS, "kept_pointwise", "mixer_block"])
def test_an_output_that_gets_no_gradient(name: str) -> None:
    """Other gradients of the same leaves are what they would be without it."""
    if name in BUILDERS:
        case = build(name, (1, 8, 17, 19), "nhwc")
        leaves = [t.requires_grad_() for t in case.tensors.values()]
        y = case.function(*leaves)
        output = y if isinstance(y, Tensor) else y[0]
    else:
        output, *leaves = globals()[name]()
    (WithoutGradient.apply(output).sum() + sum((2 * t).sum() for t in leaves)).backward()
    assert all(t.grad is not None and (t.grad == 2).all() for t in leaves)


@pytest.mark.parametrize("name", OPERATORS)
def test_weights_in_any_strides(name: str) -> None:
    case = build(name)
    strided = [
        t
        if key in case.maps
        else t.repeat_interleave(2, 0)[::2].mT.contiguous().mT
        if t.dim() == 4
        else t.repeat(2)[: t.numel()]
        for key, t in case.tensors.items()
    ]
    plain = list(case.tensors.values())
    for a, b in zip(results(case.function, strided, "cpu"), results(case.function, plain, "cpu"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (1000, 7), (7, 1000)], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_extreme_sizes(name: str, size: tuple[int, int]) -> None:
    least = 13 if name.startswith("esa") else 1
    case = build(name, (1, 8, max(size[0], least), max(size[1], least)))
    assert_twice_rule(case.function, list(case.tensors.values()))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("name", OPERATORS)
def test_empty_batch(name: str, layout: str) -> None:
    case = build(name, (0, 8, 16, 17), layout)
    outputs = outputs_of(case, "cpu")
    assert all(o.shape[0] == 0 for o in outputs)
    gradients = results(case.function, list(case.tensors.values()), "cpu")[len(outputs) :]
    for (key, t), gradient in zip(case.tensors.items(), gradients, strict=True):
        assert gradient.shape == t.shape
        assert not gradient.any(), key


MISTAKES: dict[str, Callable[[Tensor], object]] = {
    "device": lambda t: t.to("meta"),
    "dtype": lambda t: t.double(),
    "integers": lambda t: t.int(),
    "rank": lambda t: t[None],
    "extent": lambda t: torch.cat([t, t[:1]]),
    "empty": lambda t: t[:0],
    "number": lambda t: 0.5,
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_wrong_weight_is_an_input_error(name: str, mistake: str) -> None:
    case = build(name)
    for key in case.tensors:
        if key in case.maps and key in ("x", "other") and mistake in ("extent", "empty", "dtype"):
            continue  # a batch of another size, or wrong weights for float64 maps
        arguments = [MISTAKES[mistake](t) if k == key else t for k, t in case.tensors.items()]
        with pytest.raises(fastsr.InputError, match=operator_of(name)) as caught:
            case.function(*arguments)
        assert "\n" not in str(caught.value), key


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("cca_norm", "pixel_norm", "pointwise")])
def test_even_kernels_are_input_errors(name: str) -> None:
    case = build(name)
    for key, t in case.tensors.items():
        if key in case.maps or t.dim() != 4:
            continue
        for dim in (2, 3):
            if t.shape[dim] > 1:
                changed = {**case.tensors, key: t.narrow(dim, 0, t.shape[dim] - 1)}
                with pytest.raises(fastsr.InputError, match=operator_of(name)):
                    case.function(*changed.values())
