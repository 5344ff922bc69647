"""``spinevision list``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(arguments: argparse.Namespace) -> str:
    """The table of recipes."""
    from spinevision.catalogue import list_table

    return list_table()
