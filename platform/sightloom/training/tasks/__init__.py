"""The loop's objectives, one a file: alignment, supervised fine-tuning and policy optimisation."""
