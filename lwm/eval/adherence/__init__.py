"""Adherence of generated images and videos to their prompts, in the procedural world."""
