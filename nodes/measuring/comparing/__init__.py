"""The parts of FewStepCompare: entries, the converged pictures, runs, figures, and how they are told."""
