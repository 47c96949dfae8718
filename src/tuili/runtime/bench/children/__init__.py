"""Scripts that run under a peer's own interpreter, where tuili is not installed: standard library and the peer only."""
