"""Resolve, read, match and load pretrained weights."""
