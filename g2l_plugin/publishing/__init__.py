"""From a run to a folder that the world loads."""
