"""`riskgate serve`: the engine in one process, or in several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO, cast, get_args, get_type_hints

import click
import msgspec
from msgspec import inspect

from riskgate_server.cli.common import data_option
from riskgate_server.datadir import DataDirectoryError
from riskgate_server.listening import ListenRefused
from riskgate_server.settings import Settings, SettingsInvalid, load
from riskgate_server.supervised import end_with_supervisor

_HELP: Final = {
    "store": "postgresql://…: the database that holds journal and keys, instead of the directory.",
    "processes": "Serve with so many processes on the same ports; more than one needs --store.",
    "address": "Where to listen; loopback by default.",
    "certificate_port": "Port for callers with a certificate (7443).",
    "key_port": "Port for callers with an API key (7444).",
    "metrics_port": "Prometheus on 127.0.0.1 (7445), each further process one port higher; -1 for none.",
    "clock": "system, or data: time is what the events say, for histories only.",
    "ruleset": "Decide by this ruleset instead of the built-in one.",
    "cpu": "Stay on this processor, each further process on the next: for a machine that is full. -1 does not.",
    "gateway": "What brings messages to phones; file, for development, is a file with codes in clear.",
    "gateway_secrets": "The webhook's signing secrets, or Apprise's addresses, one per line.",
    "message_language": "Of messages for which nobody chose one (en).",
    "rp_id": "Domain that customers' passkeys are bound to (localhost).",
    "origins": "Pages and apps that may use them, comma-separated (http://localhost:8080).",
    "drain_seconds": "How long calls in flight may take at the end (10).",
    "log_level": "How much is logged.",
}
"""The settings that are options too."""

_METAVARS: Final = {
    "store": "DSN",
    "address": "ADDRESS",
    "ruleset": "FILE",
    "gateway_secrets": "FILE",
    "rp_id": "DOMAIN",
    "origins": "ORIGINS",
}


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    info = inspect.type_info(Settings)
    assert isinstance(info, inspect.StructType)
    kinds = {field.name: field.type for field in info.fields}
    hints = get_type_hints(Settings)
    for name, text in reversed(_HELP.items()):
        kind = _kind(kinds[name], hints[name])
        option = click.option(f"--{name.replace('_', '-')}", type=kind, metavar=_METAVARS.get(name), help=text)
        function = option(function)
    return data_option(function)


def _kind(kind: inspect.Type, hint: object) -> click.ParamType[Any]:
    """Return click's name for a setting's type, so that its bounds are written down once."""
    if isinstance(kind, inspect.LiteralType):
        # From the hint, which keeps the order in which they are written.
        return click.Choice(get_args(hint))
    if isinstance(kind, inspect.IntType):
        return click.IntRange(kind.ge, kind.le)
    if isinstance(kind, inspect.FloatType):
        return click.FloatRange(kind.ge, kind.le)
    return click.STRING


@click.command()
@_options
def serve(data: Path, **given: object) -> None:
    """Serve until SIGTERM. Every option may be set as RISKGATE_<NAME> in the environment too."""
    # Before the RPC library is imported: its own lines are no JSON, and what they say is said by us.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        settings = load({**given, "data": str(data)}, dict(os.environ))
    except SettingsInvalid as error:
        raise click.UsageError(str(error)) from error
    configure_logs(settings.log_level, settings.process)
    log_warnings()
    code = _several(settings) if settings.processes > 1 and settings.process < 0 else _one(settings)
    # Threads of the RPC library may linger; everything of ours is closed by now.
    sys.stdout.flush()
    os._exit(code)


def _one(settings: Settings) -> int:
    """Serve with this process and return its exit code."""
    if settings.process >= 0:
        end_with_supervisor(settings.ready_fd)
    import uvloop

    from riskgate_server.bootstrap import REFUSALS_TO_START, Server
    from riskgate_server.last_resort import LastResort

    # Before any thread begins, so that it holds for all of them.
    _interrupt_nobody()
    if settings.cpu >= 0:
        try:
            os.sched_setaffinity(0, {settings.cpu})
        except OSError as error:
            raise click.UsageError(f"--cpu: this process may not run on processor {settings.cpu}") from error
    # A wish of the operator's that cannot be met is one line; anything else is a fault of ours, with its trace.
    try:
        return uvloop.run(_run(partial(Server, on_broken=LastResort().doom), settings))
    except REFUSALS_TO_START as error:
        raise click.ClickException(str(error)) from error


def _interrupt_nobody() -> None:
    """
    Have no thread of this process interrupt another when it wakes.

    Each call wakes several of gRPC's, which then wait for Python's lock: two changes of context for nothing. An
    operator who chose a way of scheduling keeps it, and so does a system that knows no other or allows none.
    """
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def _run(server: Callable[..., Any], settings: object) -> int:
    code: int = await server(settings).run()
    return code


def _several(settings: Settings) -> int:
    """Serve with several processes, started as this one was, and return the exit code."""
    from riskgate_server.supervisor import FleetRefused, supervise

    given = sys.orig_argv
    mine = given[1 : given.index("serve")] if "serve" in given else ["-m", "riskgate_server"]
    try:
        return asyncio.run(supervise(settings, [sys.executable, *mine]))
    except FleetRefused as error:
        raise click.UsageError(str(error)) from error
    except (DataDirectoryError, ListenRefused, OSError) as error:
        raise click.ClickException(str(error)) from error


def configure_logs(level: str, process: int = -1) -> None:
    """
    One JSON object per line on standard error: an event name and its fields, never a person's data.

    One of several processes says which it is, on every line.
    """
    import structlog

    def name(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if process >= 0:
            event["process"] = process
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: msgspec.json.encode(event).decode()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Forgiving(sys.stderr))),
    )


def log_warnings() -> None:
    """
    Have what libraries warn of be lines of the log: strange certificates, which anybody may send, have them do so.

    Without its words, which may be about those bytes.
    """
    import structlog

    log = structlog.get_logger()

    def tell(_message: object, category: type[Warning], path: str, line: int, *_: object) -> None:
        log.warning("library warned", category=category.__name__, where=f"{Path(path).name}:{line}")

    warnings.showwarning = tell  # type: ignore[assignment]  # always called by position


class _Forgiving:
    """
    A stream to which nobody's work depends on a line being written.

    A log is often on the disk that is full: an error raised there would end the thread that tells of it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or leave it to the next write."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Have it written, or leave it to the next flush."""
        with contextlib.suppress(OSError):
            self._stream.flush()
