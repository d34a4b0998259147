"""A generated multi-centre cohort and a small trained teacher, to use without a download."""
