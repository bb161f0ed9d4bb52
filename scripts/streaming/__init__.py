"""
Streams purchases through a running server: any history, at full speed, in order for each customer.

`mapping` says what the columns of a file mean, `history` reads them, `plan` says what follows a purchase
(capture, void, refund, repayment), `sender` does it through the client, `tally` counts what came of it, `position`
keeps the place to resume from.
"""
