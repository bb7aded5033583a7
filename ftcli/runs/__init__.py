"""Runs on disk: their directories, checkpoints, histories and plots."""
