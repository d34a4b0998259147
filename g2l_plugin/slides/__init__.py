"""Whole slides to batches of tiles."""
