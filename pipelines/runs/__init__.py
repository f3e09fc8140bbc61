"""A run's directory: its files, its lock, its identity, and its mirror of an object store."""
