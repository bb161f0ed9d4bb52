"""How a customer proves who they are: factors, codes, devices, and the grants that come of a proof."""
