"""`make demo`: a city lives for four weeks on a real server, and what came of it is told."""
