"""From `kubectl apply` to answers about pictures, on a real cluster, seen by a person."""
