"""The drivers, each against the real thing."""
