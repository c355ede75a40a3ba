"""The control protocol: its messages, the supervisor's end, the client, and ``stap-server``."""
