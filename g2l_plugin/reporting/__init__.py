"""The report: what evaluations found, as tables and plots in one page."""
