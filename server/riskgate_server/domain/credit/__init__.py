"""The life of a credit line: who may use it, and until when."""
