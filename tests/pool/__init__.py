"""The shell, on every event loop."""
