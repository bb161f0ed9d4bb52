"""Durable and in-memory stores behind one port: the only room that speaks SQL."""
