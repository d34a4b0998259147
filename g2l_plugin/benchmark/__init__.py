"""One command for a model's whole evaluation: its tasks, eva's runs of them, and the report."""
