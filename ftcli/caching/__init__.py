"""What is kept on the disk so that it need not be computed again."""
