"""Settings: text and paths in, values out."""
