"""Benchmarks: what is measured (cases), against what (peers), how (measure), and the command (run)."""
