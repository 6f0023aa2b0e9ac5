"""Conversion as data: a table per model from a checkpoint's names to canonical ones, and one interpreter of tables."""
