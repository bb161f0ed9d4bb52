"""
Several server processes on the same ports, and what looks after them.

Each is a whole server with a lane of its own in the database; the kernel deals connections out among them
(`SO_REUSEPORT`). The supervisor takes no calls: it starts them, starts again what died, and ends them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from riskgate_server.datadir import DataDirectory
from riskgate_server.listening import metrics_port, require_ports, reserved_ports
from riskgate_server.settings import PREFIX, Settings, as_environment

log = structlog.get_logger()

RESTART_SECONDS_MIN: Final = 0.2
RESTART_SECONDS_MAX: Final = 30.0
"""Between the death of a process and its successor: doubled from the one to the other."""

STEADY_SECONDS: Final = 60.0
"""A process that has lived for so long begins with the shortest wait again."""

PORT_MAX: Final = 65_535

STOP_SECONDS: Final = 20.0
"""How much longer than its drain a process may take to end before it is killed."""


class FleetRefused(Exception):
    """Several processes cannot serve what the settings ask for. The message names the option."""


class Process(Protocol):
    """One server process."""

    @property
    def pid(self) -> int:
        """Its number."""

    async def ready(self) -> bool:
        """Wait until it serves; False if it ends before."""

    async def wait(self) -> int:
        """Wait for its end and return its exit code; negative is the signal that ended it."""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; none is no effect when it has ended."""


Start = Callable[[int], Awaitable[Process]]


def require_fleet(settings: Settings) -> None:
    """
    Refuse settings that are one process's.

    Raises:
        FleetRefused: naming what must be otherwise.
    """
    several = f"--processes {settings.processes}"
    if not settings.store:
        raise FleetRefused(
            f"{several} needs a database: the files of a data directory take one process, so name one with"
            " `--store postgresql://…`"
        )
    if settings.clock == "data":
        raise FleetRefused(f"{several}: time that data tells is one process's to know; serve with one")
    if settings.cpu >= 0:
        mine = os.sched_getaffinity(0)
        wanted = range(settings.cpu, settings.cpu + settings.processes)
        if not mine.issuperset(wanted):
            raise FleetRefused(
                f"--cpu: {several} would stay on processors {wanted[0]} to {wanted[-1]};"
                f" this one may run on {', '.join(map(str, sorted(mine)))}"
            )
    if metrics_port(settings, settings.processes - 1) > PORT_MAX:
        raise FleetRefused(f"--metrics-port: {several} need as many ports, from it on")


def settings_of(settings: Settings, process: int, certificate_port: int, key_port: int) -> Settings:
    """Return what one of the processes is started with."""
    return msgspec.structs.replace(
        settings,
        process=process,
        certificate_port=certificate_port,
        key_port=key_port,
        metrics_port=metrics_port(settings, process),
        cpu=settings.cpu + process if settings.cpu >= 0 else -1,
    )


async def supervise(settings: Settings, program: Sequence[str]) -> int:
    """
    Serve with several processes until told to stop; return the exit code.

    Args:
        settings: what was asked for.
        program: how a server is started, up to its subcommand.

    Raises:
        FleetRefused, ListenRefused, DataDirectoryError: what the operator must mend.
    """
    require_fleet(settings)
    directory = DataDirectory(settings.root.absolute())
    directory.check(store_here=False)
    require_ports(settings)
    with directory.held(), reserved_ports(settings) as ports:

        async def start(process: int) -> Process:
            return await _Started.make(program, settings_of(settings, process, *ports))

        fleet = Fleet(settings.processes, start, stop_seconds=settings.drain_seconds + STOP_SECONDS)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, fleet.stop)
        return await fleet.run()


class Fleet:
    """
    Keeps processes running.

    Args:
        start: starts the process of a number.
        stop_seconds: how long they may take to end when told to.
        sleep, monotonic: time.
    """

    def __init__(
        self,
        processes: int,
        start: Start,
        *,
        stop_seconds: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._start = start
        self._stop_seconds = stop_seconds
        self._sleep = sleep
        self._monotonic = monotonic
        self._stopping = asyncio.Event()
        self._running: dict[int, Process] = {}

    def stop(self) -> None:
        """Begin an orderly end."""
        if not self._stopping.is_set():
            log.info("processes stopping", processes=len(self._running))
        self._stopping.set()
        self._send(signal.SIGTERM)

    async def run(self) -> int:
        """Start all, keep them running until told to stop, and return the exit code: 0 if all ended in order."""
        # The first alone: it makes what is missing, and where it cannot serve the others could not either.
        begun = await self._begin(0) and all(
            await asyncio.gather(*(self._begin(number) for number in range(1, self._processes)))
        )
        if not begun:
            self.stop()
        else:
            log.info("processes serving", processes=self._processes)
        codes = asyncio.gather(*(self._keep(number) for number in tuple(self._running)))
        killing = asyncio.create_task(self._kill_late())
        ended = await codes
        killing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killing
        log.info("processes stopped", exit_codes=ended)
        return 0 if begun and not any(ended) else 1

    async def _begin(self, number: int) -> bool:
        """Start a process and wait until it serves; False if it does not."""
        if self._stopping.is_set():
            return False
        try:
            process = self._running[number] = await self._start(number)
        except OSError:
            # No memory for another process, or no number: it passes.
            log.exception("process not started", number=number)
            return False
        if self._stopping.is_set():
            process.send(signal.SIGTERM)
        return await process.ready()

    async def _keep(self, number: int) -> int:
        """Start a process again whenever it dies; return its last exit code once all are to stop."""
        wait = RESTART_SECONDS_MIN
        serves = True
        while True:
            began = self._monotonic()
            process = self._running[number]
            code = await process.wait()
            if self._stopping.is_set():
                # While it starts a process knows no better than to die of the signal: it had nothing to finish.
                return 0 if code == -signal.SIGTERM and not serves else code
            if self._monotonic() - began >= STEADY_SECONDS:
                wait = RESTART_SECONDS_MIN
            how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
            log.error("process died", number=number, pid=process.pid, again_in_seconds=wait, **how)
            await self._pause(wait)
            wait = min(2 * wait, RESTART_SECONDS_MAX)
            if self._stopping.is_set():
                return 0
            serves = await self._begin(number)
            if serves:
                log.info("process serving again", number=number, pid=self._running[number].pid)

    async def _pause(self, seconds: float) -> None:
        """Wait, or be told to stop."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((sleeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in (sleeping, stopping):
            task.cancel()

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        await self._sleep(self._stop_seconds)
        log.critical("processes killed: they did not end in time")
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running.values():
            process.send(number)


class _Started:
    """A server process that was started here."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: asyncio.StreamReader) -> None:
        self._process = process
        self._pipe = pipe

    @classmethod
    async def make(cls, program: Sequence[str], settings: Settings) -> Process:
        """Start it. It ends with us, and tells on a pipe that it serves."""
        reading, writing = os.pipe()
        try:
            given = as_environment(msgspec.structs.replace(settings, ready_fd=writing))
            inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
            process = await asyncio.create_subprocess_exec(
                *program,
                "serve",
                "--data",
                settings.data,
                env=inherited | given,
                pass_fds=(writing,),
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        pipe = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(pipe), os.fdopen(reading, "rb", buffering=0)
        )
        return cls(process, pipe)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> bool:
        # Its end closes the pipe.
        return bool(await self._pipe.read(1))

    async def wait(self) -> int:
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
