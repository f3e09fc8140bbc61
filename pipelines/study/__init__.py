"""What a run compares: trainings, arms, prompts, models and limits."""
