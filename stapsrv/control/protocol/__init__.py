"""The messages of the control protocol: pure, and shared by both ends."""
