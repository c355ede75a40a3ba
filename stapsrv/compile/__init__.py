"""One connection of a server, from the handshake to the response."""
