"""Folders that hold a whole model that sees: which layout each is of, and the plan of it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from multimodal_api.errors import Failure, ProductError
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.huggingface import CONFIG_NAME, HuggingFaceFolder
from multimodal_builder.checkpoints.peft import is_peft_folder, open_peft
from multimodal_builder.llava_folder import read_llava
from multimodal_builder.original_folder import TOWER_KEY, read_original
from multimodal_builder.tuning import tune
from multimodal_builder.vila_folder import LLM, read_vila

if TYPE_CHECKING:
    from pathlib import Path

    from multimodal_api.families import Family, LlmType
    from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
    from multimodal_builder.checkpoints.hub import Hub
    from multimodal_builder.plan import Plan
    from multimodal_builder.whole_model import WholeModel

MODEL_TYPES: Final = ("llava", "llava_llama")
"""`model_type` of all layouts."""


def is_model_folder(path: Path) -> bool:
    """Tell whether there is such a folder at a path."""
    try:
        document = json.loads((path / CONFIG_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("model_type") in MODEL_TYPES


def plan_model_folder(
    paths: CheckpointPaths, family: Family, llm_type: LlmType, hub: Hub | None
) -> tuple[Plan | None, list[Failure]]:
    """Decide the conversion of such a folder.

    Args:
        paths: The folder, and an adapter of peft's.
        family: Wanted.
        llm_type: Wanted.
        hub: Has the towers that are not beside it.

    Returns:
        The plan and no problems, or no plan and a problem.
    """
    if paths.llm is not None or not (paths.lora is None or is_peft_folder(paths.lora)):
        return None, [
            Failure(
                reason=Reason.UNSUPPORTED_MODEL,
                at="spec.model",
                problem="a folder of LLaVA or VILA holds its language model: it takes no other, and no adapter of NeMo",
                remedy="leave llmCheckpoint out; loraCheckpoint may be a folder of peft's",
            )
        ]
    with ExitStack() as opened:
        folder = HuggingFaceFolder(paths.visual)
        opened.callback(folder.close)
        try:
            model = _read(folder, folder.json(CONFIG_NAME), (family, llm_type), hub, opened)
            plan = _tuned(model.plan(), paths.lora, opened)
        except ProductError as error:
            return None, [error.failure]
        return replace(plan, tower=replace(model.tower, opened=opened.pop_all())), []


def _tuned(plan: Plan, lora: Path | None, opened: ExitStack) -> Plan:
    if lora is None:
        return plan
    peft = open_peft(lora, opened)
    return replace(plan, components=tune(plan.components, peft), settings=(*plan.settings, peft.settings))


def _read(
    folder: HuggingFaceFolder,
    document: dict[str, Any],
    wanted: tuple[Family, LlmType],
    hub: Hub | None,
    opened: ExitStack,
) -> WholeModel:
    if (folder.path / LLM / CONFIG_NAME).is_file():
        return read_vila(folder, *wanted, opened)
    if TOWER_KEY in document:
        return read_original(folder, *wanted, hub, opened)
    return read_llava(folder, *wanted)
