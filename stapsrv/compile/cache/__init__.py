"""The cache of compile results, and what decides on whether one may be reused."""
