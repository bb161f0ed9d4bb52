"""How the tables of a PostgreSQL store are placed on Citus."""
