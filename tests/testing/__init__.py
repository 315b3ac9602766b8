"""The public instruments for tests."""
