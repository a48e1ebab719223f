"""Where to step: pure torch and numpy, plans and searches. May import samplers."""
