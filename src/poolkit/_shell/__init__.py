"""What does: parks and wakes the callers, and runs what the core decides."""
