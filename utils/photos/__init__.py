"""Photos in and out, and the correction of photos of any size."""
