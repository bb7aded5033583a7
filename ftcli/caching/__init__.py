"""The cache on disk: stores of records, file hashes, and stored choices."""
