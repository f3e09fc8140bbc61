"""DRaFT training under Ray Train."""
