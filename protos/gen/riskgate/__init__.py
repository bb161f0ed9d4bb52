"""The contract, generated from `protos/` by `make protos`; never edited."""
