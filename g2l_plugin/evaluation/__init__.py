"""Measures of encoders: kNN accuracy, CKA, and the report of a run."""
