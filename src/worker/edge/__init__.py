"""What callers send and get: a job's input read and judged, and the reply that fits."""
