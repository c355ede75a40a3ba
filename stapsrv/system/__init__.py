"""Thin layers over Linux that know nothing of SystemTap."""
