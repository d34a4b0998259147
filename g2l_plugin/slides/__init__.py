"""From whole slides to batches of tiles: cohort, index, reading, packing and augmentation."""
