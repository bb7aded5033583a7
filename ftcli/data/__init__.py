"""Data sets: images, classes, splits, preprocessing and loading."""
