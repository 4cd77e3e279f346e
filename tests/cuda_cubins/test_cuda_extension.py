"""The CUDA operators as setup.py has them compiled: what only the real headers, macros and flags show."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cuda_cubins import ARCHITECTURES
from extension_commands import ROOT, commands

import fastsr.ops  # noqa: F401  it defines the operators

pytestmark = pytest.mark.usefixtures("toolkit")

BINDINGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc" / "cuda").glob("*_bind.cpp"))
# By an operator's schema, what its function takes and returns, without const and &.
TYPES = {
    "Tensor": "Tensor",
    "Optional[Tensor]": "std::optional<Tensor>",
    "List[Tensor]": "std::vector<Tensor>",
    "List[int]": "std::vector<int64_t>",
    "float": "double",
    "int": "int64_t",
    "bool": "bool",
}

# A binding, and whether its functions are what the schemas say: the boxing takes arguments as they come.
SIGNATURES = """#include "{binding}"
namespace fastsr::cuda {{
template <class Result, class... Arguments>
std::tuple<Result, std::decay_t<Arguments>...> plain(Result (*)(Arguments...));
{checks}
}}
"""

LAUNCH_CHECK = """#include "csrc/cuda/tensors.h"
#include <cstring>
cudaError_t last = cudaErrorInvalidConfiguration;
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) { return "why"; }
int main() {
  fastsr::cuda::check_launch("first", cudaSuccess);
  if (last == cudaSuccess) return 1;  // another's, which is not ours to clear
  try {
    fastsr::cuda::check_launch("second", last);
  } catch (const std::exception& error) {
    if (last != cudaSuccess) return 2;
    return std::strstr(error.what(), "second: the kernel did not start: why") ? 0 : 3;
  }
  return 4;
}
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def signature(name: str) -> str:
    """As a tuple: what it returns and what it takes."""
    schema = getattr(torch.ops.fastsr, name).default._schema
    results = [TYPES[str(value.type)] for value in schema.returns]
    result = {0: "void", 1: results[0] if results else ""}.get(len(results), f"std::tuple<{', '.join(results)}>")
    return f"std::tuple<{', '.join([result, *(TYPES[str(value.type)] for value in schema.arguments)])}>"


def checked(binding: str) -> str:
    bound = re.findall(r'm\.impl\("(\w+)", TORCH_BOX\(&fastsr::cuda::(\w+)\)\)', (ROOT / binding).read_text())
    assert bound
    checks = [
        f'static_assert(std::is_same_v<decltype(plain(&{function})), {signature(name)}>, "{name} and its schema");'
        for name, function in bound
    ]
    return SIGNATURES.format(binding=ROOT / binding, checks="\n".join(checks))


def test_bindings_compile_and_are_what_the_schemas_say(tmp_path: Path) -> None:
    def compile_one(binding: str) -> str:
        source = tmp_path / Path(binding).name
        source.write_text(checked(binding))
        done = run([*commands()[binding], "-fsyntax-only", str(source)])
        return done.stderr[-3000:] if done.returncode or "warning" in done.stderr else ""

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(BINDINGS, pool.map(compile_one, BINDINGS), strict=True))
    assert len(found) > 10 and {name: error for name, error in found.items() if error} == {}


def test_kernels_compile_for_every_gpu_with_the_extension_s_flags(tmp_path: Path) -> None:
    """PyTorch's macros take conversions of 16-bit numbers away; for GPUs to come there is PTX."""
    command = commands()["csrc/cuda/pixel_norm_forward.cu"]
    targets = {part.rsplit("code=", 1)[1] for part in command if part.startswith("-gencode")}
    assert targets == {*(f"sm_{architecture}" for architecture in ARCHITECTURES), "compute_120"}
    assert "-D__CUDA_NO_HALF_CONVERSIONS__" in command
    done = run([*command, "-c", "csrc/cuda/pixel_norm_forward.cu", "-o", str(tmp_path / "out.o")])
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr[-3000:]


def test_a_launch_that_failed_is_not_reported_again(tmp_path: Path) -> None:
    """PyTorch's next check of a launch would be told of it, and give another operator as the cause."""
    source, program = tmp_path / "launch.cpp", tmp_path / "launch"
    source.write_text(LAUNCH_CHECK)
    built = run([*commands()["csrc/cuda/alk_bind.cpp"], "-I.", str(source), "-o", str(program)])
    assert built.returncode == 0, built.stderr[-3000:]
    assert run([str(program)]).returncode == 0
