"""Keys, seals and proofs: the only room that touches cryptography."""
