"""What is in a network: `inspect`. Pictures of it, which load matplotlib, are made by `exhibits`."""

from ftcli.inspection.overview import inspect

__all__ = ["inspect"]
