"""The book, without an event loop."""
