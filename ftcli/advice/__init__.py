"""A recipe for a folder of images: `draft_recipe`."""

from ftcli.advice.init import InitArgs, draft_recipe

__all__ = ["InitArgs", "draft_recipe"]
