"""What the drivers of PostgreSQL share, whatever library they are for: SQL, DSNs, the survey."""
