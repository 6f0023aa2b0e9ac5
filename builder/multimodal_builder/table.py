"""An inspection as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
    from multimodal_builder.inspection import Inspection

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024


def as_table(inspection: Inspection) -> str:
    """Give one line per fact, and one per problem."""
    rows: list[tuple[str, object]] = [
        *_paths(inspection.checkpoints),
        ("model", f"{inspection.family} with {inspection.llm_type}"),
    ]
    if inspection.problems:
        rows += [(f"problem {number}", failure) for number, failure in enumerate(inspection.problems, 1)]
    else:
        rows += [
            ("layers", inspection.layers),
            ("width", inspection.hidden_size),
            ("heads", f"{inspection.heads}, {inspection.key_value_heads} for keys and values"),
            ("vocabulary", f"{inspection.vocab_size} tokens, {inspection.vocab_rows} rows"),
            ("longest sequence", f"{inspection.max_positions} tokens"),
            *_media(inspection),
            ("shortest prompt", f"{inspection.prompt_tokens} tokens and the medium's"),
            ("parameters", f"{inspection.parameters:,}"),
            ("weights, stored", _size(inspection.stored_bytes)),
            ("can be split over", f"{', '.join(map(str, inspection.tensor_parallel or ()))} GPUs"),
            *_memory(inspection),
        ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _paths(paths: CheckpointPaths) -> Iterator[tuple[str, object]]:
    named = (("checkpoint", paths.visual), ("language model", paths.llm), ("adapter", paths.lora))
    return (pair for pair in named if pair[1] is not None)


def _media(inspection: Inspection) -> Iterator[tuple[str, object]]:
    if inspection.sample_rate and inspection.samples_per_token:
        yield (
            "sound",
            f"{inspection.sample_rate} Hz, {inspection.samples_per_token / inspection.sample_rate} s per token",
        )
        return
    yield "picture", f"{inspection.image_size} pixels, {inspection.tokens_per_image} tokens"
    yield "tokens per medium", _medium(inspection)
    yield "vision tower", "in the checkpoint" if inspection.tower_in_checkpoint else "in its own folder"


def _medium(inspection: Inspection) -> str:
    if inspection.tokens_per_medium is None:
        return "as many frames as a video has"
    seen = f", a video of {inspection.frames} frames" if inspection.frames else ""
    return f"{inspection.tokens_per_medium}{seen}"


def _memory(inspection: Inspection) -> Iterator[tuple[str, object]]:
    memory = inspection.memory
    if memory is None:
        return
    where = {0: "memory without a GPU", 1: "memory of the GPU"}
    yield where.get(inspection.num_gpus or 0, f"memory of each of {inspection.num_gpus} GPUs"), _size(memory.total)
    yield "  language model", _size(memory.weights)
    yield "  keys and values", _size(memory.cache)
    yield "  media encoder", _size(memory.media_encoder)
    yield "  activations", _size(memory.activations)
    yield "  reserved", _size(memory.reserved)


def _size(count: int | None) -> str:
    size = float(count or 0)
    for unit in _UNITS[:-1]:
        if size < _STEP:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _STEP
    return f"{size:.1f} {_UNITS[-1]}"
