"""Benchmarks of ftcli against other training loops, measured in turn in one run."""
