"""How people and programs speak to the servers."""
