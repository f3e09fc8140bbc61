"""The meaning of reward names, and every score of an image."""
