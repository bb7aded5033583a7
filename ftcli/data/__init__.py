"""What it is trained on: images, their classes and splits, and how they reach the network."""
