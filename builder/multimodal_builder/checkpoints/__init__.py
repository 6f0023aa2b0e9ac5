"""Checkpoint forms, each read as data: members of an archive, configuration, and one source of tensors."""
