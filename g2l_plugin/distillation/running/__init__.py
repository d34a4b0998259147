"""What keeps a run alive: checkpoints, signals, resuming, the cache of the teacher."""
