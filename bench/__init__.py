"""Benchmarks: ratios against a floor in the same run. Nothing in src imports this."""
