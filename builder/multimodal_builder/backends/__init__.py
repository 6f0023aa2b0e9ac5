"""Backends as the builder sees them: whether their library is here, what they build, how an engine is tried."""
