"""The process that owns the device: it loads one engine, encodes media, and answers prompts that the front sends.

It has no port and no client but the front. A defect of the device ends it, and with it the container.
"""
