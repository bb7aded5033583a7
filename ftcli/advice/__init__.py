"""Recipes drafted for a dataset."""
