"""What the layers of a network give for images: taken, pooled, kept, and probed."""
