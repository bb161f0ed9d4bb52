"""Keys and proofs: what is sealed, signed and issued. The only room that imports `cryptography`."""
