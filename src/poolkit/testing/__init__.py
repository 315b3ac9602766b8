"""Instruments for tests: of programs that use poolkit, and of drivers for it."""
