"""What operators watch, in Prometheus' words and OpenTelemetry's names for RPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import start_http_server

from riskgate_server.engine.messages import Channel

BUCKETS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """
    Keeps `door.Observer`, `delivery.DeliveryObserver` and `pipeline.RivalObserver`.

    Labels are methods, statuses, channels, outcomes and reasons only: nothing that could name a customer.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Histogram(
            "rpc_server_call_duration_seconds",
            "How long calls took, by method and status.",
            ("rpc_method", "rpc_response_status_code"),
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str], Histogram] = {}
        self._attempts = Histogram(
            "riskgate_message_attempt_duration_seconds",
            "How long the gateway took to answer, by channel and result: DELIVERED, REFUSED, DOWN, UNKNOWN.",
            ("channel", "result"),
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._settled = Counter(
            "riskgate_messages_settled",
            "Messages that wait no longer, by channel and outcome: DELIVERED, REFUSED, UNSENT, EXPIRED, ENDED (a code "
            "that was used, burned or overtaken), UNREADABLE.",
            ("channel", "outcome"),
            registry=self.registry,
        )

        put_back = Counter(
            "riskgate_commands_put_back",
            "Commands that other writers were in the way of, each time: HELD wait while another process has their"
            " customer; CONFLICT, of a batch that lost a race, are run again at once.",
            ("reason",),
            registry=self.registry,
        )
        # From the start, for a rate needs a zero to begin with.
        self._put_back = {reason: put_back.labels(reason) for reason in ("HELD", "CONFLICT")}

    def observe(self, method: str, status: str, seconds: float) -> None:
        """Note one call."""
        child = self._children.get((method, status))
        if child is None:
            child = self._children[method, status] = self._calls.labels(method, status)
        child.observe(seconds)

    def attempted(self, channel: Channel, result: str, seconds: float) -> None:
        """Note one attempt to hand a message to the gateway."""
        self._attempts.labels(channel.name, result).observe(seconds)

    def settled(self, channel: Channel, outcome: str) -> None:
        """Note what a message came to."""
        self._settled.labels(channel.name, outcome).inc()

    def put_back(self, reason: str, commands: int) -> None:
        """Note commands that another writer was in the way of."""
        self._put_back[reason].inc(commands)

    def watch_messages(self, pending: Callable[[], int]) -> None:
        """Show how many messages this process has in hand."""
        gauge = Gauge("riskgate_messages_pending", "Messages this process is sending.", registry=self.registry)
        gauge.set_function(pending)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Show how many commands wait for the writer."""
        gauge = Gauge("riskgate_commands_waiting", "Commands the writer has not answered yet.", registry=self.registry)
        gauge.set_function(waiting)

    def watch_trust(self, refused: Callable[[], bool]) -> None:
        """Show whether attestations are held against roots or revocations that were to be replaced."""
        said = "1 while a file of attestation roots or revocations is broken, and what it last said counts."
        Gauge("riskgate_attestation_trust_refused", said, registry=self.registry).set_function(lambda: float(refused()))

    def serve(self, address: str, port: int) -> Callable[[], None]:
        """Answer scrapes over HTTP until the returned function is called."""
        server, thread = start_http_server(port, addr=address, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
