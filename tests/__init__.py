"""The tests of poolkit."""
