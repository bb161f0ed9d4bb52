"""Where rows live. Every store keeps the promises of `engine/ports.py` and passes `tests/contract/`."""
