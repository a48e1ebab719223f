"""What a person sees: one file a family, a schema and a few lines of execute each."""
