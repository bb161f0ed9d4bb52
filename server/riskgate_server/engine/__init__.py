"""The one write path and the use cases. Names the ports that the edges keep."""
