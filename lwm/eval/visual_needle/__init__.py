"""Needles in long videos: a picture to be named, or generated, over frames and depths."""
