"""What other programs call: the live page and window."""
