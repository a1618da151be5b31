"""Retrieval of one or several needles over a grid of context lengths, after LWM's scripts."""
