"""What SALM checkpoints become: a speech encoder, a modality adapter and a projector before a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multimodal_api.errors import Failure, ProductError
from multimodal_api.families import Family
from multimodal_api.overrides import MEDIA_SLOT, TEXT_SLOT
from multimodal_api.reasons import Reason
from multimodal_builder import checks
from multimodal_builder.checkpoints.speech_config import check_speech
from multimodal_builder.components import llm_component
from multimodal_builder.plan import Plan, attempt, build_language_model, check_weights, merged
from multimodal_builder.speech import PREFIX, audio_recipe, speech_components
from multimodal_builder.templates import DEFAULT_TEXTS
from multimodal_builder.tokenizer import Usage
from multimodal_builder.tokenizer_files import convert_tokenizer, read_tokenizer
from multimodal_builder.tuning import tune
from multimodal_recipes.recipe import PromptTemplate, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multimodal_api.families import LlmType
    from multimodal_builder.checkpoints.checkpoint import Checkpoint, Sources
    from multimodal_builder.checkpoints.speech_config import SpeechConfig, SpeechSection
    from multimodal_builder.tokenizer import ConvertedTokenizer

TEMPLATE_KEY: Final = "data.train_ds.prompt_template"


def make_salm_plan(sources: Sources[SpeechConfig], llm_type: LlmType) -> tuple[Plan | None, list[Failure]]:
    """Decide a conversion.

    Returns:
        The plan and no problems, or no plan and all problems.
    """
    problems = list(_check(sources, llm_type))
    sources = attempt(lambda: merged(sources), problems) or sources
    tokenizer = None if problems else attempt(lambda: _tokenizer(sources), problems)
    plan = None if tokenizer is None else attempt(lambda: _assemble(sources, llm_type, tokenizer), problems)
    return (None if problems else plan), problems


def _check(sources: Sources[SpeechConfig], llm_type: LlmType) -> Iterator[Failure]:
    speech, language = sources.visual, sources.language
    yield from check_speech(speech.config, speech.config_at)
    yield from checks.check_apart(language, llm_type)
    if speech.config.perception.output_dim != language.config.hidden_size:
        yield Failure(
            reason=Reason.CHECKPOINT_CONFIG,
            at=f"{language.config_at}: hidden_size",
            problem=f"is {language.config.hidden_size}, but the speech encoder was trained for "
            f"{speech.config.perception.output_dim}",
            remedy="give the language model that the speech encoder was trained with",
        )


def _tokenizer(sources: Sources[SpeechConfig]) -> ConvertedTokenizer:
    language = sources.language
    template = prompt_template(sources.visual.config.data.train_ds, sources.visual.config_at)
    usage = Usage(template=template, marks=None, positions=language.config.positions)
    return convert_tokenizer(read_tokenizer(language), language.config.tokenizer.additional_special_tokens, usage)


def prompt_template(section: SpeechSection, at: str) -> PromptTemplate:
    """Make the recipe's template: the sound, then the training's text up to where the answer begins.

    Args:
        section: Of the training's data.
        at: What to call the configuration in an error.

    Raises:
        ProductError: it holds no place for the question, or does not end with the answer.
    """
    ahead, asked, rest = section.prompt_template.partition(f"{{{section.context_key}}}")
    middle, answered, behind = rest.partition(f"{{{section.answer_key}}}")
    if not asked or not answered or behind:
        raise ProductError(
            Reason.CHECKPOINT_CONFIG,
            at=f"{at}: {TEMPLATE_KEY}",
            problem=f"{section.prompt_template!r} is no question and an answer behind it",
            remedy=f"name the two {{{section.context_key}}} and {{{section.answer_key}}}, as in training",
        )
    # Training takes blanks off the end of the question's text; they belong to the answer's.
    question = middle.rstrip(" ")
    return PromptTemplate(
        before="",
        turn=TEXT_SLOT + question,
        lead=middle[len(question) :],
        between=section.end_string or "\n",
        medium=MEDIA_SLOT + ahead.lstrip(" "),
        default_text=DEFAULT_TEXTS[Family.SALM],
    )


def _assemble(sources: Sources[SpeechConfig], llm_type: LlmType, tokenizer: ConvertedTokenizer) -> Plan:
    language_model = build_language_model(sources.language, llm_type, tokenizer)
    # A folder that NeMo's script split off holds nothing but speech, under names without a prefix.
    own = _prefix(sources.visual)
    components = (
        llm_component(sources, language_model, tokenizer, (PREFIX,)),
        *speech_components(sources.visual, own),
    )
    check_weights(components, sources, (own,))
    return Plan(
        components=tune(components, sources.peft),
        recipe=_recipe(sources, tokenizer, language_model.positions),
        language_model=language_model,
        tower=None,
        tokenizer=tokenizer,
        settings=(*sources.settings(), *tokenizer.sources),
    )


def _prefix(speech: Checkpoint[SpeechConfig]) -> str:
    return PREFIX if any(name.startswith(PREFIX) for name in speech.tensors.infos()) else ""


def _recipe(sources: Sources[SpeechConfig], tokenizer: ConvertedTokenizer, positions: int) -> Recipe:
    end = sources.visual.config.data.train_ds.end_string
    return Recipe(
        family=Family.SALM,
        template=tokenizer.template,
        audio=audio_recipe(sources.visual.config),
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=(tokenizer.eos,),
        stop_strings=(end,) if end else (),
        add_bos=False,
        max_positions=positions,
    )
