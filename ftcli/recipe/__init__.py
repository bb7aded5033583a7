"""What the user asked for. Imports no torch."""
