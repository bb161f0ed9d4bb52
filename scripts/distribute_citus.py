#!/usr/bin/env python3
"""Places the tables of a PostgreSQL store on a Citus cluster, or says what it would do."""

from __future__ import annotations

import sys
from pathlib import Path

# A file named for a wish: it may be run from anywhere, so it says itself where its parts are.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.distribution.command import main

if __name__ == "__main__":
    main()
