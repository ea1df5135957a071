"""What happens on a connection before a route: who may use the server, its limits, and clients that go away."""
