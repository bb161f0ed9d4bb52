"""Rows in a PostgreSQL database that several servers may write, and customers' keys in a schema of their own."""
