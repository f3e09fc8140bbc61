"""Ray: connecting to it, what each part of a run asks of it, and its errors."""
