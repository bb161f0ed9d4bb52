"""A typed client of Riskgate."""
