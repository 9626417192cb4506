"""Training objectives as pure functions of tensors: float32 inside, collectives and global counts passed in."""
