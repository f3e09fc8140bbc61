"""What reward names mean, and every score of an image."""
