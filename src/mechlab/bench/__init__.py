"""Benchmarks: what mechlab costs beside the least that the work can cost, and beside other tools."""
