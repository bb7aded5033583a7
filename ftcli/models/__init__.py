"""Create, summarize, cut and freeze networks."""
