"""Double entry, holds and repayment of one credit line."""
