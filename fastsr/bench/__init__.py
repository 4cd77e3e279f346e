"""Benchmarks and profiles: `fastsr bench` and `fastsr profile`.

registry (what and against what) -> cases, peers (made runnable) -> verify, measure -> roofline, results -> text, page.
"""
