"""Advertising of compile servers, and finding them, by multicast DNS (DNS-SD)."""
