"""RunPod's queue as a door: jobs taken, results posted, none lost."""
