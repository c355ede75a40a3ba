"""The web page: what the supervisor knows, to look at in a browser; read only."""
