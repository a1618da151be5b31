"""Text, pictures and conversations in, tokens out."""
