"""The report: evaluation results as tables and plots on one page."""
