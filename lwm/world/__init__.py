"""A procedural world of moving things with exact answers, and its checker; NumPy, no JAX."""
