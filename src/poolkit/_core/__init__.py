"""What decides: no await, no clock, no log, no chance."""
