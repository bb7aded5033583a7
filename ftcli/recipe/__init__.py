"""Recipes: schema, YAML, --set, messages and JSON Schema, without torch."""
