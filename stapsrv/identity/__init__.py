"""A server's identity: its certificate, its key, and the trust in them."""
