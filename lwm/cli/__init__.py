"""The command line: it parses, opens, prints; nothing else in the package prints."""

from lwm.cli.app import main

__all__ = ["main"]
