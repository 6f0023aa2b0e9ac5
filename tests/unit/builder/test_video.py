"""What configurations of the families that take videos become, and what contradicts them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece

from multimodal_api.engine import Dtype, Limits
from multimodal_api.families import Family, LlmType
from multimodal_api.reasons import Reason
from multimodal_builder.checkpoints.checkpoint import CheckpointPaths
from multimodal_builder.inspection import Inspection, inspect
from multimodal_recipes.layout import lay_out
from multimodal_recipes.prompt import MediaSlot
from multimodal_recipes.recipe import FrameSampling, Recipe, TimeTokens, VideoLayout, VideoRecipe
from support.archives import Archive

if TYPE_CHECKING:
    from pathlib import Path

TIMES = 20
PATCHES = 36


def settings(family: Family, **changes: object) -> dict[str, Any]:
    """The keys in which NeMo's video_neva_config and lita_config differ from llava_config."""
    video: dict[str, Any] = {"data.media_type": "video", "data.num_frames": 8, "data.splice_single_frame": None}
    lita = {
        "mm_cfg.use_lita": True,
        "mm_cfg.lita": {
            "lita_video_arch": "temporal_all_resolution",
            "visual_token_format": "im_vid_start_end",
            "sample_frames": 4,
        },
        "data.conv_template": "v1",
    }
    return {**video, **({} if family is Family.VIDEO_NEVA else lita), **changes}


def pieces_with_times() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red circle is left of the blue square, is it?"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=[*(f"<extra_id_{n}>" for n in range(10)), *(f"<t{n}>" for n in range(TIMES))],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def write(archive: Archive, folder: Path, changes: dict[str, Any], *, times: bool = False) -> Path:
    for key, value in changes.items():
        archive.set_config(key, value)
    if times:
        archive.members[archive.config()["tokenizer"]["model"].removeprefix("nemo:")] = pieces_with_times()
    return archive.write(folder)


def look(path: Path, family: Family, limits: Limits | None = None) -> tuple[Inspection, Recipe | None]:
    inspection, plan, opened = inspect(
        CheckpointPaths(visual=path), family=family, llm_type=LlmType.LLAMA, dtype=Dtype.FLOAT32, limits=limits
    )
    opened.close()
    return inspection, plan.recipe if plan else None


def test_video_neva_sees_frames_one_after_the_other(tmp_path: Path, classic: Archive) -> None:
    found, recipe = look(write(classic, tmp_path, settings(Family.VIDEO_NEVA)), Family.VIDEO_NEVA)
    assert recipe is not None
    assert recipe.seeing().video == VideoRecipe(
        num_frames=8, sampling=FrameSampling.TRUNCATED, layout=VideoLayout.FRAMES
    )
    assert (found.tokens_per_image, found.frames, found.tokens_per_medium) == (PATCHES, 8, 8 * PATCHES)
    assert recipe.time_tokens is None
    assert recipe.template.default_text == "Hi! What is in this video?"


def test_all_frames_have_no_bound(tmp_path: Path, classic: Archive) -> None:
    changes = settings(Family.VIDEO_NEVA, **{"data.num_frames": -1})
    found, recipe = look(write(classic, tmp_path, changes), Family.VIDEO_NEVA)
    assert recipe is not None
    assert recipe.seeing().video is not None
    assert (found.frames, found.tokens_per_medium) == (None, None)


@pytest.mark.parametrize("family", [Family.LITA, Family.VITA])
@pytest.mark.parametrize("start_end", [False, True])
def test_lita_and_vita_see_whole_frames_and_times(
    tmp_path: Path, classic: Archive, family: Family, *, start_end: bool
) -> None:
    changes = settings(family, **{"mm_cfg.use_im_start_end": start_end})
    found, recipe = look(write(classic, tmp_path, changes, times=True), family)
    assert found.problems == ()
    assert recipe is not None
    frame, video = ("<extra_id_4>", MediaSlot(PATCHES), "<extra_id_5>"), ("<extra_id_8>", MediaSlot(8), "<extra_id_9>")
    assert lay_out(recipe.seeing(), 8).parts == (*frame * 4, *video)
    # The outer marks are there besides those of the first frame and the video, where training keeps them.
    kept = "<extra_id_4>{media}<extra_id_5>\n"
    assert recipe.template.medium == (kept if start_end else "{media}\n")
    assert recipe.time_tokens == TimeTokens(count=TIMES)
    assert found.tokens_per_medium == 4 * PATCHES + 8
    assert recipe.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("arch", "layout", "rows"),
    [
        ("temporal_spatial", VideoLayout.TEMPORAL_SPATIAL, 8 + PATCHES),
        ("temporal_spatial_pool", VideoLayout.TEMPORAL_SPATIAL_POOL, 8 + PATCHES),
    ],
)
def test_lita_of_the_first_form(tmp_path: Path, classic: Archive, arch: str, layout: VideoLayout, rows: int) -> None:
    form = {"lita_video_arch": arch, "visual_token_format": "v1", "sample_frames": 4}
    found, recipe = look(write(classic, tmp_path, settings(Family.LITA, **{"mm_cfg.lita": form})), Family.LITA)
    assert recipe is not None
    assert recipe.seeing().video == VideoRecipe(num_frames=8, sampling=FrameSampling.TRUNCATED, layout=layout)
    assert found.tokens_per_medium == rows
    assert recipe.time_tokens is None


@pytest.mark.parametrize(
    ("family", "changes", "reason", "says"),
    [
        (Family.VIDEO_NEVA, {"data.media_type": "image"}, Reason.CHECKPOINT_CONFIG, "video-neva has video"),
        (Family.VIDEO_NEVA, {"mm_cfg.use_lita": True}, Reason.CHECKPOINT_CONFIG, "video-neva has False"),
        (Family.VIDEO_NEVA, {"data.num_frames": 0}, Reason.CHECKPOINT_CONFIG, "num_frames: is 0"),
        (Family.VIDEO_NEVA, {"data.splice_single_frame": "middle"}, Reason.UNSUPPORTED_MODEL, "'middle'"),
        (Family.VIDEO_NEVA, {"data.sep_image_conv_front": True}, Reason.UNSUPPORTED_MODEL, "turn of their own"),
        (Family.LITA, {"mm_cfg.use_lita": False}, Reason.CHECKPOINT_CONFIG, "lita or vita has True"),
        (Family.LITA, {"data.num_frames": -1}, Reason.CHECKPOINT_CONFIG, "num_frames: is -1"),
        (Family.VITA, {"data.num_frames": 3}, Reason.CHECKPOINT_CONFIG, "sample_frames: is 4"),
        (
            Family.LITA,
            {"mm_cfg.lita": {"lita_video_arch": "temporal_spatial", "visual_token_format": "im_vid_start_end"}},
            Reason.CHECKPOINT_CONFIG,
            "temporal_spatial with im_vid_start_end",
        ),
        (
            Family.LITA,
            {
                "mm_cfg.lita": {"lita_video_arch": "temporal_spatial_pool"},
                "mm_cfg.vision_encoder.vision_select_feature": "cls_patch",
            },
            Reason.CHECKPOINT_CONFIG,
            "37 rows, which are no square",
        ),
    ],
    ids=str,
)
def test_what_contradicts_the_family_is_explained(
    tmp_path: Path, classic: Archive, family: Family, changes: dict[str, Any], reason: Reason, says: str
) -> None:
    found, _ = look(write(classic, tmp_path, settings(family, **changes)), family)
    assert [problem.reason for problem in found.problems if says in str(problem)] == [reason]


def test_a_tokenizer_without_the_video_s_marks_is_refused(tmp_path: Path, classic: Archive) -> None:
    path = write(classic, tmp_path, settings(Family.LITA))
    archive = Archive.read(path)
    name = archive.config()["tokenizer"]["model"].removeprefix("nemo:")
    archive.members[name] = archive.members[name].replace(b"<extra_id_9>", b"<extra_id_x>")
    found, _ = look(archive.write(tmp_path), Family.LITA)
    assert "lacks the piece <extra_id_9>" in str(found.problems[0])


def test_limits_are_held_against_the_smallest_video(tmp_path: Path, classic: Archive) -> None:
    path = write(classic, tmp_path, settings(Family.VIDEO_NEVA))
    found, _ = look(path, Family.VIDEO_NEVA, Limits(vision_max_batch_size=1, max_multimodal_len=8 * PATCHES - 1))
    assert [problem.reason for problem in found.problems] == [Reason.LIMITS_TOO_SMALL]
    assert str(8 * PATCHES) in found.problems[0].problem
    lita = write(Archive.read(path), tmp_path, settings(Family.LITA))
    found, _ = look(lita, Family.LITA, Limits(vision_max_batch_size=1, max_multimodal_len=4 * PATCHES + 1))
    assert found.problems == ()


def test_vila_takes_one_picture_whatever_its_configuration_says_of_videos(tmp_path: Path, classic: Archive) -> None:
    found, recipe = look(write(classic, tmp_path, settings(Family.VITA)), Family.VILA)
    assert found.problems == ()
    assert recipe is not None
    assert recipe.seeing().video is None
    assert found.tokens_per_medium == PATCHES
