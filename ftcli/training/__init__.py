"""Training: the setup, stages, checkpoints and resume of a run, and estimates of its cost."""
