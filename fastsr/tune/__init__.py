"""`fastsr tune`: measures tile sizes of the Triton kernels on this GPU and writes their table."""

from fastsr.tune.run import OPERATORS as OPERATORS
from fastsr.tune.run import run_tune as run_tune
