"""Metrics of every arm, from its images."""
