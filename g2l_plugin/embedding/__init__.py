"""Slides in, one file of embeddings a slide out, for whoever trains slide-level models."""
