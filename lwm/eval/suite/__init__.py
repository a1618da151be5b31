"""All evaluations of long context in text, one after another, with one report."""
