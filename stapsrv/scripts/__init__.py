"""Collections of scripts: which are to compile for which kernel release, and the results."""
