"""A SystemTap compile server: one async supervisor hosts every server of a host."""

__version__ = "0.1.0"
