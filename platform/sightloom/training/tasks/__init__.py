"""The loop's objectives, one a file: alignment, fine-tuning, policy optimisation, preferences, reward models."""
