"""The transformer of the Llama kind, its attention and its key/value cache."""
