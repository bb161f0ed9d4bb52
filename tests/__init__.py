"""What Riskgate promises, as claims that can fail."""
