"""Extraction of features to files, probes on them, and checkpoints with a probe as the head."""
