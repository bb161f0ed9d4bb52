"""The baseline: a grpc.aio server that answers CheckTransaction without looking at it, over the same TLS."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc

from riskgate.risk.v1 import risk_service_pb2 as pb
from riskgate.risk.v1 import risk_service_pb2_grpc as pb_grpc
from riskgate_server.datadir import DataDirectory


class Echo(pb_grpc.RiskServiceServicer):
    """Parses the request, as any server must, and sends one prepared answer."""

    def __init__(self, answer: pb.CheckTransactionResponse) -> None:
        self._answer = answer

    async def CheckTransaction(  # noqa: N802 - the contract's name
        self, request: pb.CheckTransactionRequest, context: object
    ) -> pb.CheckTransactionResponse:
        """Answer."""
        del request, context
        return self._answer


async def main(root: Path, answer: bytes) -> None:
    """Serve until killed; the port is the first line printed."""
    directory = DataDirectory(root)
    server = grpc.aio.server()
    servicer = Echo(  # type: ignore[abstract]  # the other methods answer UNIMPLEMENTED
        pb.CheckTransactionResponse.FromString(answer)
    )
    pb_grpc.add_RiskServiceServicer_to_server(servicer, server)
    pair = (directory.server_key.read_bytes(), directory.server_certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])))
