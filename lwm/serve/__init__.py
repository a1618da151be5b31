"""Serves a model over HTTP in OpenAI's dialect, with images and videos in and out."""
