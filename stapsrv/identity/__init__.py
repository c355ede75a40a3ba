"""Who a server is: its certificate, its key, and who trusts it."""
