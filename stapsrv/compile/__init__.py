"""What a server does with one connection."""
