"""A small key-value server, its client, and poolkit's driver for it."""
