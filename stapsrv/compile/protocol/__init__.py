"""The protocol of compile clients, bytes in and values out. Pure: no I/O, no clock."""
