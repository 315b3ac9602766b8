"""Long searches for a way to break a promise: `make soak`. They share nothing with `tests`."""
