"""Other training loops, one program each: `python -m benchmarks.peers.NAME JOB`.

Each trains a job, or runs the forward pass of its network, and prints its cost as the last line.
"""
