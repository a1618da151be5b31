"""Evaluations that can be stopped and continued: needle retrieval, captioned media, VQGANs."""
