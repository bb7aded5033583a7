"""Fine-tune image classifiers from YAML recipes."""

__version__ = "0.1.0"
