"""Writes a native LLaVA: the files that plain transformers loads, and a card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from ..data.licences import LLAMA2, LLAMA2_NOTICE
from ..model.publishing import is_local, last_name
from ..utils.markdown import code, escape
from ..utils.outputs import AnyPath, atomic_folder

UNKNOWN = "unknown"


@dataclass
class NativeLlava:
    """A LLaVA of transformers, and the files that it needs.

    Args:
        mllm (`LlavaForConditionalGeneration`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with the image token.
        image_processor (`BaseImageProcessor`): Its image processor, for square images.
        prefix_tokens (`int`): Tokens that the tower puts in front of its patches: class token and registers.
    """

    mllm: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    prefix_tokens: int


@dataclass
class Source:
    """A model that a LLaVA was made of, for the card.

    Args:
        role (`str`): What it is in the LLaVA.
        name (`str`): Its name on the Hub, or its folder.
        licence (`str`, *optional*): Its licence; None if it is not recorded.
    """

    role: str
    name: str
    licence: str | None


def write_native(llava: NativeLlava, folder: AnyPath, *, sources: Sequence[Source], text: str) -> None:
    """Writes a native LLaVA with its card. The folder appears when it is complete.

    Args:
        llava (`NativeLlava`): The model and its files.
        folder (`str` or `os.PathLike`): The new folder.
        sources (`Sequence[Source]`): The models that it was made of.
        text (`str`): Markdown: what the model is, and what to do with it.

    Raises:
        UserError: The folder is not empty, or the disk cannot be written.
    """
    config = llava.mllm.config
    processor = LlavaProcessor(
        llava.image_processor,
        llava.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=llava.prefix_tokens,
        image_token=llava.tokenizer.convert_ids_to_tokens(config.image_token_id),
        chat_template=llava.tokenizer.chat_template,
    )
    with atomic_folder(folder) as temporary:
        llava.mllm.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        # Also where versions of transformers before 5 look for them.
        llava.image_processor.save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(Path(folder).name, sources, text), encoding="utf-8")
        if LLAMA2 in [source.licence for source in sources]:
            (temporary / "NOTICE").write_text(LLAMA2_NOTICE, encoding="utf-8")


def _card(name: str, sources: Sequence[Source], text: str) -> str:
    """Returns the card in Markdown. Its metadata hold the licences of all sources."""
    licences = list(dict.fromkeys(source.licence or UNKNOWN for source in sources))
    on_hub = [source.name for source in sources if not is_local(source.name)]
    metadata = ModelCardData(
        license=licences[0] if len(licences) == 1 else licences,  # type: ignore[arg-type]  # the Hub reads lists too
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["llava", "mllmreid"],
        base_model=on_hub or None,
    )
    lines = [
        f"| {escape(source.role)} | {code(source.name if source.name in on_hub else last_name(source.name))} | "
        f"{escape(source.licence or 'not recorded')} |"
        for source in sources
    ]
    table = "\n".join(["| | model | licence |", "|---|---|---|", *lines])
    return f"---\n{metadata.to_yaml()}\n---\n# {escape(name)}\n{text}\n\n{table}\n\nEach licence holds for its weights.\n"
