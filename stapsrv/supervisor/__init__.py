"""Hosts compile servers: their lifecycle, what they share, and what outlives them."""
