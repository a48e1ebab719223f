"""Work that runs the model many times: estimate, search, spread. Stands on nodes/host."""
