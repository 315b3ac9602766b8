"""poolkit inside other people's frameworks."""
