"""Modules built by a plan in place of make: plans, the program that follows them, and where they are kept."""
