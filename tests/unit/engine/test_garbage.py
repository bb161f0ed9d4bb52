"""A batch ends with its commit: nothing of it waits for the garbage collector, while which everybody would wait."""

from __future__ import annotations

import gc

import pytest

from riskgate_server.engine import pipeline as pipeline_module
from riskgate_server.engine.work import Batch
from tests import factories as f


def test_nothing_of_a_batch_is_left_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    living = 0

    class Counted(Batch):
        def __init__(self, *given: object, **named: object) -> None:
            nonlocal living
            living += 1
            super().__init__(*given, **named)  # type: ignore[arg-type]  # whatever it takes

        def __del__(self) -> None:
            nonlocal living
            living -= 1

    monkeypatch.setattr(pipeline_module, "Batch", Counted)
    pipeline = f.make_pipeline()
    gc.disable()
    try:
        pipeline.run([f.open_line()])
        pipeline.run([f.check("t-1"), f.capture("c-1", "t-1"), f.pay("p-1", 1_000), f.check("t-1", 9)])
        assert living == 0
    finally:
        gc.enable()
