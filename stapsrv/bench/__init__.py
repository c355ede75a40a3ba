"""Measures servers under a bounded load."""
