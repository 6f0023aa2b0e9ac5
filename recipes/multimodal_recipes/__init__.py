"""The families as data and pure functions: prompts, token layout, media decoding and preprocessing.

No torch: the front and the client use it as well as the builder and the worker.
"""
