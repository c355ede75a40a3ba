"""Compiles on other hosts: nodes that offer releases, and the jobs that go to them (Dask distributed)."""
