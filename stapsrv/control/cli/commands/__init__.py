"""The commands of ``stap-server``, one module each."""
