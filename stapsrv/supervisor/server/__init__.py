"""One compile server: its listener, whom it lets in, and its sessions."""
