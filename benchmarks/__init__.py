"""What made the figures in the docs."""
