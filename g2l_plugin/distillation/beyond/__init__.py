"""Past the paper: what the objective may compare beside the projected embeddings."""
