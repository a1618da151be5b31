"""Command line: parses arguments, calls the library and prints. No other package prints."""

from lwm.cli.app import main

__all__ = ["main"]
