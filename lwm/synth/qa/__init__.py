"""Questions about long documents, written chunk by chunk by a model with a short context."""
