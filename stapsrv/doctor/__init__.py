"""Checks of everything that a client needs to get its module, with remedies, and the bug report."""
