"""In a source tree, `fastsr.kernels` is the top-level folder kernels/; an installation has its files here."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
