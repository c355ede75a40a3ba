"""The web page: the supervisor's state in a browser; read only."""
