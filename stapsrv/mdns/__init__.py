"""What the network hears: the servers of this host, as DNS-SD services over multicast DNS."""
