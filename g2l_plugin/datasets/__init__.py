"""Benchmark tasks: from an official download to a manifest, and from a manifest to a dataset."""
