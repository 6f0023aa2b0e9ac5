"""The report of `inspect`: a model's family, sizes and memory, and every problem, for people and for programs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from multimodal_api.base import Model
from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import FAMILIES, Family, LlmType, Modality
from multimodal_builder import checks
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.checkpoints.nemo import open_sources, open_speech
from multimodal_builder.memory import Memory, check_tensor_parallel, estimate, tensor_parallel_sizes
from multimodal_builder.model_folder import is_model_folder, plan_model_folder
from multimodal_builder.plan import Plan, make_plan
from multimodal_builder.salm import make_salm_plan
from multimodal_recipes.first_question import ANSWER_TOKENS, first_prompt
from multimodal_recipes.frames import frame_bounds
from multimodal_recipes.layout import lay_out
from multimodal_recipes.recipe import LLM_DIR
from multimodal_recipes.tokenizer import TOKENIZER_NAME, Tokenizer

if TYPE_CHECKING:
    from multimodal_api.engine import Dtype, Limits
    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.components import Component
    from multimodal_recipes.prompt import Prompt
    from multimodal_recipes.recipe import Recipe

_STORED: Final = {"BF16": 2, "F16": 2, "F32": 4}


class Inspection(Model):
    """What configurations and headers say about a checkpoint."""

    checkpoints: CheckpointPaths
    family: Family
    llm_type: LlmType
    problems: tuple[Failure, ...]
    """All of them; the fields below are there when there are none."""
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    key_value_heads: int | None = None
    vocab_rows: int | None = None
    """Of the embedding, padding included."""
    vocab_size: int | None = None
    """Of the tokenizer."""
    max_positions: int | None = None
    image_size: int | None = None
    tokens_per_image: int | None = None
    """Of one picture, or one frame."""
    frames: int | None = None
    """Most that are seen of a video; None where all are, and for families that take pictures."""
    tokens_per_medium: int | None = None
    """Of one picture, or of a video that has as many frames as are seen; None where all are."""
    sample_rate: int | None = None
    """Of sounds, in Hz."""
    samples_per_token: int | None = None
    """How much of a sound one position stands for."""
    prompt_tokens: int | None = None
    """Of the shortest prompt, without media."""
    tower_in_checkpoint: bool | None = None
    """Whether the tower was trained, and lies in the checkpoint."""
    parameters: int | None = None
    stored_bytes: int | None = None
    """Of the weights, as they are stored."""
    tensor_parallel: tuple[int, ...] | None = None
    """Numbers of GPUs over which the language model can be split."""
    num_gpus: int | None = None
    memory: Memory | None = None
    """Of one of these GPUs, for the wanted limits."""


def inspect(
    paths: CheckpointPaths,
    *,
    family: Family,
    llm_type: LlmType,
    dtype: Dtype,
    limits: Limits | None,
    num_gpus: int = 1,
    hub: Hub | None = None,
) -> tuple[Inspection, Plan | None, ExitStack]:
    """Read the headers of a model's checkpoints.

    Args:
        paths: Archives or folders.
        family: Wanted.
        llm_type: Wanted.
        dtype: Of the weights in memory.
        limits: To check, and for the estimate of memory; None leaves both out.
        num_gpus: The same; 0 is none.
        hub: Has the models that a checkpoint names and that are not beside it.

    Returns:
        The report; the plan, when there are no problems; and what closes the checkpoints that the plan reads.
    """
    opened = ExitStack()
    try:
        if FAMILIES[family].modality is Modality.AUDIO:
            plan, problems = make_salm_plan(open_speech(paths, opened), llm_type)
        elif is_model_folder(paths.visual):
            plan, problems = plan_model_folder(paths, family, llm_type, hub)
        else:
            plan, problems = make_plan(open_sources(paths, opened, hub), family, llm_type)
    except ProductError as error:
        return _report(paths, family, llm_type, [error.failure]), None, opened
    if plan is None:
        return _report(paths, family, llm_type, problems), None, opened
    if plan.tower is not None:
        opened.callback(plan.tower.close)
    if limits is not None:
        problems += checks.check_limits(
            limits, asked=_first_prompt(plan), answer=ANSWER_TOKENS, positions=plan.recipe.max_positions
        )
        problems += check_tensor_parallel(plan.language_model, num_gpus)
    if problems:
        return _report(paths, family, llm_type, problems), None, opened
    memory = None if limits is None else _memory(plan, dtype, limits, num_gpus)
    return _describe(paths, llm_type, plan, memory, num_gpus), plan, opened


def _report(paths: CheckpointPaths, family: Family, llm_type: LlmType, problems: list[Failure]) -> Inspection:
    return Inspection(checkpoints=paths, family=family, llm_type=llm_type, problems=tuple(problems))


def _describe(
    paths: CheckpointPaths, llm_type: LlmType, plan: Plan, memory: Memory | None, num_gpus: int
) -> Inspection:
    shape, recipe = plan.language_model, plan.recipe
    return Inspection(
        checkpoints=paths,
        family=recipe.family,
        llm_type=llm_type,
        problems=(),
        layers=shape.layers,
        hidden_size=shape.hidden,
        heads=shape.heads,
        key_value_heads=shape.groups,
        vocab_rows=shape.rows,
        vocab_size=recipe.vocab_size,
        max_positions=recipe.max_positions,
        **_media(recipe),
        prompt_tokens=plan.tokenizer.prompt_tokens,
        tower_in_checkpoint=plan.tower.trained if plan.tower else None,
        parameters=sum(_parameters(component) for component in plan.components),
        stored_bytes=plan.weight_bytes,
        tensor_parallel=tensor_parallel_sizes(shape),
        num_gpus=None if memory is None else num_gpus,
        memory=memory,
    )


def _media(recipe: Recipe) -> dict[str, int | None]:
    """Say how much of a prompt media take."""
    if recipe.audio is not None:
        mel = recipe.audio.mel
        return {"sample_rate": mel.sample_rate, "samples_per_token": mel.hop * recipe.audio.frames_per_row}
    vision = recipe.seeing()
    _, most = frame_bounds(vision.video) if vision.video else (1, 1)
    return {
        "image_size": vision.preprocessing.image_size,
        "tokens_per_image": vision.tokens_per_image,
        "frames": vision.video.num_frames if vision.video else None,
        "tokens_per_medium": lay_out(vision, most).rows if most else None,
    }


def _first_prompt(plan: Plan) -> Prompt:
    return first_prompt(plan.recipe, Tokenizer(plan.tokenizer.files[TOKENIZER_NAME], add_bos=plan.recipe.add_bos))


def _memory(plan: Plan, dtype: Dtype, limits: Limits, num_gpus: int) -> Memory:
    encoder = sum(_parameters(component) for component in plan.components if component.folder != LLM_DIR)
    model, tower = plan.language_model, plan.tower.config if plan.tower else None
    return estimate(model, tower, encoder, limits=limits, num_gpus=num_gpus, dtype=dtype)


def _parameters(component: Component) -> int:
    infos = [info for step in component.mapped.steps for _, info in step.targets]
    return sum(info.nbytes // _STORED[info.dtype] for info in infos)
