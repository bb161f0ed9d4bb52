"""Messages to customers: their texts, and the gateways that bring them to phones."""
