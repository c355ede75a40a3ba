"""The state that a supervisor keeps on disk from one process to the next."""
