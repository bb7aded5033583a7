"""Features of frozen networks: extraction, caching, feature files and probes."""
