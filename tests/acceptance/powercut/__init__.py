"""What a disk would hold after the power went, rebuilt from the system calls of an unmodified server."""
