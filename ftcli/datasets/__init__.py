"""Known data sets, downloaded into folders that recipes can use."""

from ftcli.datasets.registry import download_dataset

__all__ = ["download_dataset"]
