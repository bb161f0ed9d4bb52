#!/usr/bin/env python3
"""Serves a page on which a browser enrols a passkey and approves a purchase with it: `make passkey`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A file named for a wish: it may be run from anywhere, so it says itself where its parts are.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Before the RPC library is imported: what it would write by itself, a script says better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from scripts.passkey_page.command import main

if __name__ == "__main__":
    main()
