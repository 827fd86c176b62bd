"""The published architectures with random weights, and how they are timed; for bench/gpu.py."""
