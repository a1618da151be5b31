"""Perplexity by position, and how much of the context a model uses."""
