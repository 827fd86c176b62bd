"""What a caller can ask: one file per kind of asking, and how a job becomes wishes."""
