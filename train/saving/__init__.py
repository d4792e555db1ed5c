"""Checkpoints: a run's state in files that are hashed, replaced atomically, and read without unpickling."""
