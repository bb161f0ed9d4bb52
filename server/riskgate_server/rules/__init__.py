"""The edge that speaks CEL and YAML: reads a ruleset's text, checks every expression, compiles the whole."""
