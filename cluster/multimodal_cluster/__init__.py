"""One real single-node Kubernetes on a machine without Docker, for the demo and the tests."""
