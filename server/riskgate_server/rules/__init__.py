"""The rules language: checks, types and compiles CEL."""
