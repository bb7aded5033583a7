"""How the stages of a recipe are run."""
