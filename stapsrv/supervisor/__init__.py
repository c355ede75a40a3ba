"""Who lives and who dies."""
