"""Files from the internet: downloaded once, resumed when cut, checked against their digest on every use."""

from ftcli.downloads.cache import download_file, is_offline

__all__ = ["download_file", "is_offline"]
