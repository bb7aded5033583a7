"""What came out of a training."""
