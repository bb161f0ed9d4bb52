"""Where rows live. Every store keeps the promises of `engine/storing.py` and passes `tests/contract/`."""
