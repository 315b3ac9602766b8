"""Real faults against a real PostgreSQL, and the table of them in the documentation."""
