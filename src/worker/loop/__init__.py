"""RunPod's loop around the worker: jobs taken, results posted, none lost."""
