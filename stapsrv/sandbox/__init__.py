"""Containment of what runs on a client's behalf: what it sees, what it may use up, and how."""
