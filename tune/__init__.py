"""Sweeps of training runs with Ray Tune."""
