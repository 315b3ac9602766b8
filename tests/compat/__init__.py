"""The tests of other pools' names over ours."""
