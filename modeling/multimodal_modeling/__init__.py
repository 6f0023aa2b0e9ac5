"""Shared by builder and worker: media tower and language model (transformers' own), projector, splice and sampling."""
