"""The benchmarks' registry, pytest entry and results, and the check of a GPU machine; fastsr/bench has the code."""
