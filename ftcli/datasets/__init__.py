"""Known data sets, made into folders that a recipe can use."""

from ftcli.datasets.download import download_dataset

__all__ = ["download_dataset"]
