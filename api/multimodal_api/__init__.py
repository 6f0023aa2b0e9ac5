"""The contract between user, operator, builder and server.

Everything here is data: the resource (`resource`, `status`), its rules (`rules`), the engine's identity and manifest
(`engine`), what a build Job is told and reports (`build`), Triton's tensors (`wire`) and the words they all share
(`families`, `reasons`, `labels`, `errors`). Nothing here does I/O.
"""
