"""Bricks that more than one architecture is built from."""
