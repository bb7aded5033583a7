"""Known data sets, made into folders that a recipe can use."""

from ftcli.data.fetching.folder import download_dataset

__all__ = ["download_dataset"]
