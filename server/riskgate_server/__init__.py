"""The Riskgate engine: decides, reserves credit and proves it, behind one gRPC door."""
