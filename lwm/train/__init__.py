"""Training of language models and VQGANs: settings, losses, updates, checkpoints, whole runs."""
