"""Benchmark tasks: official downloads to manifests, manifests to datasets, eva configs."""
