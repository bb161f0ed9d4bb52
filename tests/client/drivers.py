"""One way to drive both clients, so that every claim about one is a claim about the other."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

from riskgate_client import AsyncRiskgate, Riskgate
from riskgate_client.caller import Service
from tests.rpc.serving import Loop

Connect = Callable[..., Riskgate]


@contextmanager
def blocking(_loop: Loop) -> Iterator[Connect]:
    """Connect with `Riskgate`."""
    made: list[Riskgate] = []

    def connect(*args: Any, **kwargs: Any) -> Riskgate:
        made.append(Riskgate(*args, **kwargs))
        return made[-1]

    yield connect
    for gate in made:
        gate.close()


@contextmanager
def asynchronous(loop: Loop) -> Iterator[Connect]:
    """Connect with `AsyncRiskgate`, dressed up as `Riskgate`."""
    made: list[Any] = []

    def connect(*args: Any, **kwargs: Any) -> Riskgate:
        made.append(OnLoop(loop, AsyncRiskgate)(*args, **kwargs))
        return cast("Riskgate", made[-1])

    yield connect
    for gate in made:
        gate.close()


END = object()
CLIENTS = {"blocking": blocking, "asyncio": asynchronous}


class OnLoop:
    """Something that lives on an event loop of another thread, used from here: what it awaits is waited for."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            result = self._inner(*map(_asynchronous, args), **kwargs)
            return await result if inspect.isawaitable(result) else result

        return self._dressed(self._loop.begin(call()).result())

    def _dressed(self, value: Any) -> Any:
        living = callable(value) or isinstance(value, AsyncRiskgate | Service | AsyncIterable)
        return OnLoop(self._loop, value) if living or type(value).__name__.endswith("Stub") else value

    def __getattr__(self, name: str) -> Any:
        if name == "close" and inspect.isasyncgen(self._inner):
            name = "aclose"
        return self._dressed(getattr(self._inner, name))

    def __enter__(self) -> Self:
        OnLoop(self._loop, self._inner.__aenter__)()
        return self

    def __exit__(self, *exception: object) -> None:
        OnLoop(self._loop, self._inner.__aexit__)(*exception)

    def __iter__(self) -> OnLoop:
        return OnLoop(self._loop, aiter(self._inner))

    def __next__(self) -> Any:
        try:
            return OnLoop(self._loop, self._inner.__anext__)()
        except StopAsyncIteration:
            raise StopIteration from None

    def __repr__(self) -> str:
        return repr(self._inner)


def _asynchronous(argument: Any) -> Any:
    """Return an iterator as an asynchronous one, for it may wait, and anything else as it is."""
    if not isinstance(argument, Iterator):
        return argument

    async def each() -> AsyncIterator[Any]:
        while (item := await asyncio.to_thread(next, argument, END)) is not END:
            yield item

    return each()
