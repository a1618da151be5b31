"""Generates text, images and video: sampling, the engine over ids, and chat."""
