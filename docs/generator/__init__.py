"""Generator of documents from the code; tests check that they are up to date."""
