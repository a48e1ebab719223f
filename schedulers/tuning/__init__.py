"""What to do at every number of calls, found on a model's own converged runs: where to step, and by which weights."""
