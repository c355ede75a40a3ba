"""``stap-server top``: a live view of all servers in the terminal."""
