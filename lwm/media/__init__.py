"""Images and videos to square frames, and frames to files; NumPy arrays, no JAX."""
