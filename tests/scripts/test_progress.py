"""What scripts write where nobody watches."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from scripts.streaming.progress import Trimmed


@given(st.lists(st.text(alphabet="ab \n", max_size=12), max_size=8))
def test_no_line_ends_in_blanks_and_nothing_else_is_lost(pieces: list[str]) -> None:
    written = io.StringIO()
    stream = Trimmed(written)
    for piece in (*pieces, "\n"):
        stream.write(piece)

    assert written.getvalue() == "\n".join(line.rstrip(" ") for line in ("".join(pieces) + "\n").split("\n"))
