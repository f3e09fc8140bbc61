"""The search for schedules of one adapter."""
