"""Models that the pack brings or loads, as the host's own objects."""
