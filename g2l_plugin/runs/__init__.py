"""A run's folder: what it holds, its record and its checkpoints."""
