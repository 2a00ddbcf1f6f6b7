"""Training: one resumable loop, its checkpoints and its curves."""
