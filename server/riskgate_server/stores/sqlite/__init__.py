"""Rows in one SQLite file, and customers' keys in another."""
