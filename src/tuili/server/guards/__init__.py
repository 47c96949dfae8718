"""What stands between a socket and a handler: limits, hosts, origins, keys. Plain ASGI, no wire format."""
