"""The front door: one thin verb for each task."""

from diffmoe.cli.main import main

__all__ = ["main"]
