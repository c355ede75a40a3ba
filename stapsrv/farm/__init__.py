"""Compiles on other hosts: nodes that offer releases, and what goes to them and back (Dask distributed)."""
