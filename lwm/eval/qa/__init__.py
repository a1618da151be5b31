"""Questions about images and videos: local sets in known shapes, with their scoring rules."""
