"""Hosts compile servers: their lifecycle, the parts that they share, and the state that outlives them."""
