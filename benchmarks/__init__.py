"""The registry of benchmarks, their pytest entry, the check of a GPU machine, and results; fastsr/bench has the code."""
