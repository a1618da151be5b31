"""Tokenizers, messages and chat templates: text and conversations to ids and back."""
