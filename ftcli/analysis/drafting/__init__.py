"""A recipe for a folder of images: `draft_recipe`."""

from ftcli.analysis.drafting.draft import Brief, draft_recipe

__all__ = ["Brief", "draft_recipe"]
