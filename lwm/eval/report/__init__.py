"""Report of a suite: one HTML page that needs neither network nor scripts, and its JSON."""
