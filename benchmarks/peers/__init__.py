"""Loops as people write them, each a program of its own: `python -m benchmarks.peers.NAME JOB`.

Each trains what a job asks for, or runs its network forward, and tells what it cost on its last line.
"""
