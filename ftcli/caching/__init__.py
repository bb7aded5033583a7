"""The disk cache: record stores, file hashes and benchmark results."""
