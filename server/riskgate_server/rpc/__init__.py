"""The gRPC edge: the only room that speaks protobuf."""
