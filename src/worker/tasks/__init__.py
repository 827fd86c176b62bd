"""What a caller can request: one file per kind of request, and how a job becomes wishes."""
