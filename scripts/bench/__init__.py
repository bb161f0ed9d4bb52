"""What a decision costs, beside what the RPC framework alone costs, in one run."""
