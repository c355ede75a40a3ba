"""Where a compile runs: the engine on this host, and the cache and single flight in front of it."""
