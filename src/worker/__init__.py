"""A RunPod serverless worker for open image models."""
