"""What the business decides. Knows nothing but its arguments: no clock, no I/O, no globals."""
