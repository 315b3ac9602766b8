"""The repository: what a newcomer runs."""
