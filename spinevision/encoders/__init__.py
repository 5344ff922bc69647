"""Backbones that stand for themselves, and how published weights become ours."""
