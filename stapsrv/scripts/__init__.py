"""Collections of scripts: what is to compile for which kernel release, and what came of it."""
