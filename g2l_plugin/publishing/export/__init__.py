"""A student in the form that another tool takes."""
