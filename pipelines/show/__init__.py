"""What a terminal shows: progress, tables, and the one format of an estimate."""
