"""Image quality, and the methods that it compares."""
