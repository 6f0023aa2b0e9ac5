"""The process that speaks to clients: it checks requests, makes prompts and pixels, and asks the worker. No torch."""
