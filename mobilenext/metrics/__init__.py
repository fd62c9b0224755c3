"""Measures of predictions, exact for any number of processes."""
