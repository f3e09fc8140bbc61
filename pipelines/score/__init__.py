"""Scores of any folder of images."""
