"""What a purchase looks like beside the customer's own past, and what the rules make of it."""
