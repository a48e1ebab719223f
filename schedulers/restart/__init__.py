"""Restart, arXiv 2306.14878, planned: published lists and what a person asks for -> one schedule with jumps."""
