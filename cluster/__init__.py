"""A measurement on many machines and GPUs: `python3 run.py measure`. Nothing here is imported in a graph."""
