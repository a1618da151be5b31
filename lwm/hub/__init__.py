"""Catalogue of known models, and downloads from hubs and package indexes."""
