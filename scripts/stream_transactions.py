#!/usr/bin/env python3
"""Streams anybody's transaction history through a running server. See `--help` and README.md beside this file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A file named for a wish: it may be run from anywhere, so it says itself where its parts are.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Before the RPC library is imported: what it would write by itself, a script says better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from scripts.streaming.command import main

if __name__ == "__main__":
    main()
