"""poolkit underneath SQLAlchemy."""
