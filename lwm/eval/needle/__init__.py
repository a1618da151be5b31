"""Single-needle retrieval over a grid of context lengths and depths, after LWM's script."""
