"""Counts what is in compiled CUDA code, by Triton's own cuobjdump."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

COUNTED = ("HMMA", "HGMMA", "UTCHMMA", "MUFU", "FSEL", "FFMA", "FMUL", "FADD", "LDS", "STS", "LDSM", "SHFL", "BAR")


def cuobjdump() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def _dump(what: str, cubin: Path) -> str:
    return subprocess.run([str(cuobjdump()), what, str(cubin)], capture_output=True, text=True, check=True).stdout


def measure(cubin: Path) -> dict[str, dict[str, Any]]:
    """Registers, stack and instructions by opcode, of each kernel by its mangled name."""
    usage = dict(re.findall(r"Function (\S+?):\n\s*(REG:.*)", _dump("--dump-resource-usage", cubin)))
    parts = re.split(r"Function : (\S+)\n", _dump("--dump-sass", cubin))
    return {name: _counts(usage[name], code) for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def _counts(usage: str, code: str) -> dict[str, Any]:
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code)
    opcodes = opcodes[: max(i for i, name in enumerate(opcodes) if name == "EXIT") + 1]  # the rest is padding
    bases = Counter(name.split(".")[0] for name in opcodes)
    wide = {kind: sum(o.startswith(f"{kind}.") and "128" in o.split(".") for o in opcodes) for kind in ("LDG", "STG")}
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "instructions": len(opcodes),
        "local": bases["LDL"] + bases["STL"],
        "double": bases["DADD"] + bases["DMUL"] + bases["DFMA"] + bases["DSETP"],
        "global": {"LDG": bases["LDG"], "LDG.128": wide["LDG"], "STG": bases["STG"], "STG.128": wide["STG"]},
        "opcodes": {name: bases[name] for name in COUNTED if bases[name]},
    }


def worse(key: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """What `now` needs more of than `then` allows; fewer is fine."""
    found = []
    narrow = [count["global"][k] - count["global"][f"{k}.128"] for count in (now, then) for k in ("LDG", "STG")]
    if now["instructions"] > 1.05 * then["instructions"]:
        found.append(f"{key}: {now['instructions']} instructions, were {then['instructions']}")
    if now["registers"] > 1.1 * then["registers"]:
        found.append(f"{key}: {now['registers']} registers, were {then['registers']}")
    if now.get("shared", 0) > then.get("shared", 0):
        found.append(f"{key}: {now['shared']} bytes of shared memory, were {then['shared']}")
    if narrow[0] > narrow[2] or narrow[1] > narrow[3]:
        found.append(f"{key}: {narrow[:2]} loads and stores of less than 128 bits, were {narrow[2:]}")
    if now["opcodes"].get("FSEL", 0) > then["opcodes"].get("FSEL", 0):
        found.append(f"{key}: {now['opcodes']['FSEL']} selections, were {then['opcodes'].get('FSEL', 0)}")
    return found
