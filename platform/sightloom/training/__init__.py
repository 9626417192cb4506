"""Training: one curriculum file, one loop, pluggable objectives; Ray Train is an adapter around it (training.md)."""
