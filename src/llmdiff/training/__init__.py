"""Training: one resumable loop, what it is fed with, its checkpoints and its curves."""
