"""Backbones that more than one architecture uses, and how published weights become ours."""
