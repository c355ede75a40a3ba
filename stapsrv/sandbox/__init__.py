"""Containment of programs that run on a client's behalf: what they see, and what they may use up."""
