"""From a checkpoint to an engine: inspect, convert, build, verify, publish.

Only the verify stage imports torch: reading and converting a checkpoint moves bytes and never computes with them.
"""
