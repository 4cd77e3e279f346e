"""Builds the compiled operators if it can, and installs pure Python if it cannot.

FASTSR_BUILD=auto (default) builds what is possible and says what is left out and why; 1 makes a failed build an error;
0 builds nothing. FASTSR_CUDA=0 leaves the CUDA operators out, "native" builds them for the GPUs of this machine only,
in a sixth of the time; otherwise TORCH_CUDA_ARCH_LIST names architectures. FASTSR_SANITIZE=1 builds the CPU operators
for AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize`). torch is not a build requirement, because an
isolated build would fetch gigabytes of a version that need not match: the installed one is used.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("FASTSR_BUILD", "auto")
SANITIZE = os.environ.get("FASTSR_SANITIZE") == "1"
STABLE_ABI = "0x020b000000000000ULL"  # torch 2.11, the oldest that the operator libraries load into
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]


def say(message: str) -> None:
    print(f"fastsr: {message}", file=sys.stderr)


def find_torch() -> ModuleType | None:
    if MODE == "0":
        return None
    # In an isolated build the target environment's packages are not on the path; look there, too.
    for extra in ([], [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
        sys.path.extend(p for p in extra if p and p not in sys.path)
        try:
            import torch

            return torch
        except ImportError:
            continue
    message = "torch cannot be imported: pip install torch first, then fastsr again with --no-build-isolation"
    if MODE == "1":
        raise SystemExit(f"fastsr: {message}")
    say(f"the compiled operators are left out, {message}")
    return None


def find_cuda() -> str | None:
    """The CUDA toolkit's folder. An nvcc on PATH may be a wrapper elsewhere, so the headers decide."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    candidates += sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)
    for folder in candidates:
        if folder and Path(folder, "bin/nvcc").exists() and Path(folder, "include/cuda_runtime.h").exists():
            return folder
    return None


def cuda_architectures(torch: ModuleType) -> str:
    """For TORCH_CUDA_ARCH_LIST: what it is or all, or with FASTSR_CUDA=native those of the GPUs that are here."""
    if os.environ.get("FASTSR_CUDA") != "native":
        return os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    here = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
    if not here:
        raise SystemExit("fastsr: FASTSR_CUDA is native and PyTorch sees no GPU; unset it to build for all of them")
    known = {name.split("+")[0].rstrip("a"): name.split("+")[0] for name in CUDA_ARCHITECTURES.split(";")}
    return ";".join(known.get(f"{major}.{minor}", f"{major}.{minor}") for major, minor in sorted(here))


def cuda_code(cpp_extension: ModuleType) -> str:
    """What nvcc is asked for: "sm_80 sm_90a compute_120", the last as PTX."""
    return " ".join(flag.rsplit("code=", 1)[1] for flag in cpp_extension._get_cuda_arch_flags() if "code=" in flag)


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def extensions(torch: ModuleType) -> dict[str, Any]:
    cuda_sources = sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp")
    wants_cuda = bool(cuda_sources and torch.version.cuda and os.environ.get("FASTSR_CUDA", "1") != "0")
    cuda_home = find_cuda() if wants_cuda else None
    if cuda_home:
        os.environ["CUDA_HOME"] = cuda_home
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures(torch)
    elif wants_cuda:
        say("the CUDA operators are left out: no nvcc with cuda_runtime.h was found; set CUDA_HOME")

    import pybind11
    from torch.utils import cpp_extension

    stable = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", "-DTORCH_STABLE_ONLY"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1"] if SANITIZE else []
    facts = [
        f'-DFASTSR_TORCH="{torch.__version__}"',
        f'-DFASTSR_CUDA="{torch.version.cuda if cuda_home else "none"}"',
        f'-DFASTSR_CUDA_CODE="{cuda_code(cpp_extension) if cuda_home else ""}"',
    ]
    modules = [
        Extension(
            "fastsr._C",
            ["csrc/module.cpp"],
            include_dirs=[pybind11.get_include()],
            extra_compile_args={"cxx": [*CXX_FLAGS, *facts]},  # type: ignore[arg-type]
        ),
        cpp_extension.CppExtension(
            "fastsr._ops_cpu",
            sources("csrc/cpu/*.cpp", "csrc/cpu/isa/*.cpp"),
            depends=sources("csrc/*.h", "csrc/cpu/**/*.h", "csrc/cpu/**/*.inl"),
            extra_compile_args={"cxx": CXX_FLAGS + stable + sanitize},
            extra_link_args=sanitize,
            py_limited_api=True,
        ),
    ]
    if cuda_home:
        modules.append(
            cpp_extension.CUDAExtension(
                "fastsr._ops_cuda",
                cuda_sources,
                depends=sources("csrc/*.h", "csrc/cuda/*.h", "csrc/cuda/*.cuh"),
                extra_compile_args={
                    "cxx": [*CXX_FLAGS, *stable, "-DUSE_CUDA"],
                    "nvcc": ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden"],
                },
                py_limited_api=True,
            )
        )

    class Build(cpp_extension.BuildExtension):
        """A build that may fail without failing the installation."""

        built = True

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if MODE == "1":
                    raise
                self.built = False
                say(f"the compiled operators are left out, the build failed: {error}")

        def get_outputs(self) -> list[str]:
            return super().get_outputs() if self.built else []

        def get_output_mapping(self) -> dict[str, str]:
            return super().get_output_mapping() if self.built else {}

        def copy_extensions_to_source(self) -> None:
            if self.built:
                super().copy_extensions_to_source()

    compiler = shutil.which(os.environ.get("CXX", "c++")) or "none"
    say(f"building with torch {torch.__version__}, C++ compiler {compiler}, CUDA {cuda_home or 'none'}")
    return {"ext_modules": modules, "cmdclass": {"build_ext": Build}}


torch = find_torch()
setup(
    # kernels/ (the Triton kernels) is installed as fastsr.kernels: the top-level name belongs to another package.
    # Of benchmarks/, the registry is installed, for `fastsr bench`.
    packages=[
        *find_packages(include=["fastsr", "fastsr.*"], exclude=["fastsr.kernels"]),
        "fastsr.kernels",
        "fastsr.bench.registry_data",
    ],
    package_dir={
        "fastsr": "fastsr",
        "fastsr.kernels": "kernels",
        "fastsr.bench.registry_data": "benchmarks/registry",
    },
    package_data={
        "fastsr": ["py.typed", "gpu_order/*.json", "weights/*", "train/recipes/*.yaml", "bench/*.json", "bench/*.j2"],
        "fastsr.bench.registry_data": ["*.yaml", "*.json"],
        "fastsr.kernels": ["configs/*.json"],
    },
    **(extensions(torch) if torch else {}),
)
