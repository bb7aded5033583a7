"""Known data sets, made into folders that a recipe can use."""

from ftcli.data.fetching.folder import fetch

__all__ = ["fetch"]
