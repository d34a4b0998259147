"""Metrics inside eva: callbacks that compute them, and the files that hold them."""
