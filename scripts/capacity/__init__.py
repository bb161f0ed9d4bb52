"""What a decision costs, from measured points, and what a load therefore needs."""
