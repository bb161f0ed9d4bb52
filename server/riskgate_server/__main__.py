"""`python -m riskgate_server` is `riskgate`."""

from riskgate_server.cli import main

main()
