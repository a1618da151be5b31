"""Weights and configurations of other formats, read into ours."""
