"""Readers and writers of file formats: GGUF, Flax msgpack streams, pickles. No model."""
