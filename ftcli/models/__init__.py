"""What is trained: networks, their anatomy, heads, weights and what is frozen."""
