"""The caller registry: a SQLite file of its own that the command line edits beside a running server."""
