"""What exists: models, GPUs, runtimes and acceptance figures, a source for every row."""
