"""Engines: that of this host, and the cache and single flight in front of it."""
