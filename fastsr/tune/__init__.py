"""`fastsr tune`: the tables of tile sizes, measured on this GPU, and of which kind of kernels goes first."""

from fastsr.tune.order import run_order as run_order
from fastsr.tune.run import OPERATORS as OPERATORS
from fastsr.tune.run import run_tune as run_tune
