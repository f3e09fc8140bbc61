"""Sweeps of trainings with Ray Tune."""
