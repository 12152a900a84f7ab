"""The command line `deployctl`. See `provision.cli.app` for the table of commands."""

from provision.cli.app import main

__all__ = ["main"]
