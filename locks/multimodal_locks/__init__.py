"""Pinned, hashed dependencies: one lock per environment, and the environment that developers and tests use."""
