"""Sweeps of training runs with Ray Tune, and the search for schedules."""
