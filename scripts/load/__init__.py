"""
An open-loop load test: calls begin when a schedule says so, whatever became of the ones before.

Latency counts from the planned start. A closed loop waits with its next call while the server stalls, and so
leaves the stall out of its own figures; this does not.
"""
