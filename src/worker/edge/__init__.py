"""What every task has in common at the edge: fields read, faults gathered, replies written."""
