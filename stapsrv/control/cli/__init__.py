"""``stap-server``: the command line's parsing, planning, execution and output."""
