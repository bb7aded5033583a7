"""Comparison of runs: settings, curves, and accuracy on the same images."""
