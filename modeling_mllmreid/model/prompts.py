"""Prompts: the whole-text templates of both branches, and their token ids.

A template is one text. `{image}` stands for the image tokens, `{caption}` for a caption, `{instruction}` for the
instruction. Each prompt is tokenized as one text, because tokens may join the ends of its parts.
"""

import hashlib
import json
import re
from typing import Any, NamedTuple

# The template of LLaVA-1.5, for a tokenizer without a chat template.
PLAIN_TEMPLATE = "USER: {image}\n{instruction} ASSISTANT:"
# What the text branch has in place of the image.
CAPTION = "{caption}"
INSTRUCTION = "{instruction}"
ANSWER = "{answer}"


class Prompt(NamedTuple):
    """A tokenized prompt.

    Args:
        ids (`list[int]`):
            Token ids.
        start, end (`int`):
            First position of the image or the caption, and the position after its last one.
    """

    ids: list[int]
    start: int
    end: int


class Template:
    """A template with one slot, `{image}` or `{caption}`.

    Args:
        name (`str`):
            Name of the field, for the errors.
        text (`str`):
            The template.
        slot (`str`):
            "image" or "caption".

    Raises:
        ValueError: if the text has no slot or several, or an instruction before the image.
    """

    def __init__(self, name: str, text: str, slot: str):
        parts = text.split(f"{{{slot}}}")
        if len(parts) != 2:
            raise ValueError(f"{name} is {text[:60]!r}; give a text with {{{slot}}} once, it has {len(parts) - 1}")
        if slot == "image" and INSTRUCTION in parts[0]:
            # The ids before the image are fixed, and the feature of an image must not depend on the instruction.
            raise ValueError(f"{name} is {text[:60]!r}; give a text with {{image}} before {{instruction}}")
        self.before, self.after = parts

    def fill(self, content: str, instruction: str) -> tuple[str, int, int]:
        """Returns the prompt's text, and the first and last position of the content in it."""
        # Not `format`, which would evaluate other braces of a foreign template.
        before, after = (part.replace(INSTRUCTION, instruction) for part in (self.before, self.after))
        return before + content + after, len(before), len(before) + len(content)

    def prompts(self, tokenizer: Any, contents: list[str], instructions: list[str]) -> list[Prompt]:
        """Tokenizes one prompt for each content.

        Special tokens are those that the tokenizer adds to such a text. A template that starts with the begin-of-text
        token gets none, as in the processors of transformers.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                A tokenizer with character offsets.
            contents, instructions (`list[str]`):
                What stands in the slot of each prompt, and its instruction.

        Raises:
            ValueError: for a tokenizer without offsets.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer is a {type(tokenizer).__name__}, which gives no character offsets; give one with a "
                "tokenizer.json"
            )
        if not contents:
            return []
        texts, starts, ends = zip(*map(self.fill, contents, instructions), strict=True)
        begin = tokenizer.bos_token
        encoded = tokenizer(
            list(texts),
            add_special_tokens=not (begin and self.before.startswith(begin)),
            return_offsets_mapping=True,
        )
        return [
            _located(*values) for values in zip(encoded.input_ids, encoded.offset_mapping, starts, ends, strict=True)
        ]


def _located(ids: list[int], offsets: list[tuple[int, int]], start: int, end: int) -> Prompt:
    """Finds the tokens that cover the characters from start to end. A token that also covers others counts.

    Added special tokens have the offsets (0, 0), in front of every character.
    """
    first = next((index for index, (_, last) in enumerate(offsets) if last > start), len(ids))
    covering = [index for index in range(first, len(ids)) if offsets[index][0] < end]
    return Prompt(ids, first, covering[-1] + 1 if start < end and covering else first)


# ---- templates of a tokenizer --------------------------------------------------------------------------------------


def templates_of(
    tokenizer: Any, chat_template: str | dict[str, str] | None, image_token: str, begin: str = "", end: str = ""
) -> tuple[str, str]:
    """Renders the templates of the image branch and the text branch from a chat template.

    The chat has one turn of the user: the image and the instruction, or the caption and the instruction. The chat
    template writes the system turn that it has, and the start of the answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer, for the names of its special tokens.
        chat_template (`str` or `dict[str, str]`, *optional*):
            The chat template, or several by name. Without one the result is the template of LLaVA-1.5.
        image_token (`str`):
            The image token.
        begin, end (`str`, *optional*):
            Text around the image tokens.

    Returns:
        `tuple[str, str]`: image template and text template.

    Raises:
        ValueError: for a chat template that takes no image, or that changes the instruction or the caption.
    """
    image = f"{begin}{{image}}{end}"
    if isinstance(chat_template, dict):
        chat_template = chat_template.get("default")
    if chat_template is None:
        return PLAIN_TEMPLATE.replace("{image}", image), PLAIN_TEMPLATE.replace("{image}", CAPTION)
    text = f"{CAPTION}\n{INSTRUCTION}"
    # Chat templates of multimodal models take a list, those of language models a text.
    as_list = [{"type": "image"}, {"type": "text", "text": INSTRUCTION}], [{"type": "text", "text": text}]
    as_text = f"{image_token}\n{INSTRUCTION}", text
    reason = ""
    for contents in (as_list, as_text):
        try:
            with_image, with_caption = (_rendered(tokenizer, chat_template, content) for content in contents)
        except Exception as error:  # a chat template raises anything
            reason = f" ({' '.join(str(error).split())[:100]})"
            continue
        with_image, marks = re.subn(_image_mark(image_token, begin, end), lambda _: image, with_image)
        once = (with_image.count(INSTRUCTION), with_caption.count(INSTRUCTION), with_caption.count(CAPTION))
        if (marks, *once) == (1, 1, 1, 1):
            return with_image, with_caption
    raise ValueError(
        f"the chat template does not write the image {image_token!r}, the caption and the instruction once each"
        f"{reason}; correct it, or give image_template and text_template"
    )


def _rendered(tokenizer: Any, chat_template: str, content: Any) -> str:
    """Returns the chat of one user turn, up to the answer. Models that think first are asked for the answer alone."""

    def render(*turns: dict[str, Any], start: bool) -> str:
        rendered: str = tokenizer.apply_chat_template(
            list(turns),
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=start,
            enable_thinking=False,
        )
        return rendered

    user = {"role": "user", "content": content}
    chat = render(user, start=True)
    if chat != render(user, start=False):
        return chat
    # The chat template ignores `add_generation_prompt`: what it writes before an answer is the start of one.
    answer = [{"type": "text", "text": ANSWER}] if isinstance(content, list) else ANSWER
    try:
        before, found, _ = render(user, {"role": "assistant", "content": answer}, start=False).partition(ANSWER)
    except Exception:  # a chat template raises anything, and may take answers of another form
        return chat
    return before if found and before.startswith(chat) and before.strip() != chat.strip() else chat


def _image_mark(image_token: str, begin: str, end: str) -> str:
    """Returns a pattern of what chat templates write for an image: its token, with or without the text around it.

    Some write the begin mark alone, which the processor replaces by all of them.
    """
    token, first, last = (re.escape(part.strip()) for part in (image_token, begin, end))
    return rf"(?:{first})?{token}(?:{last})?" + (f"|{first}" if first else "")


# ---- tokenizers ----------------------------------------------------------------------------------------------------


def reserved_texts(tokenizer: Any, image_token: str) -> re.Pattern[str]:
    """Returns a pattern of the texts that become special tokens, and of the image token.

    A caption must not contain them: it would end its turn, or stand for an image.
    """
    added = tokenizer.added_tokens_decoder.values()
    reserved = {image_token, *tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    # The longest first: one token may be the start of another.
    return re.compile("|".join(map(re.escape, sorted(reserved, key=len, reverse=True))))


def check_text(text: str, reserved: re.Pattern[str], image_token: str) -> None:
    """Raises ValueError for a text with a reserved token, and for half of a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text {ascii(text[:60])} holds half of a character; correct it") from None
    found = reserved.search(text)
    if found:
        kind = "image" if found[0] == image_token else "special"
        raise ValueError(f"the text {text[:60]!r} holds the {kind} token {found[0]!r}; remove it")


def pad_token_id(tokenizer: Any) -> int:
    """Returns the id that fills shorter texts. Any id will do: nothing sees padding."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((index for index in ids if index is not None), 0)


def check_vocabulary(processor: Any, size: int) -> None:
    """Raises ValueError for an id without an embedding that a text, a prompt or padding may have.

    Args:
        processor ([`MllmReIDProcessor`]):
            The processor.
        size (`int`):
            Number of embeddings.
    """
    tokenizer, reserved = processor.tokenizer, reserved_texts(processor.tokenizer, processor.image_token)
    # The image replaces the embedding of the image token.
    used = {pad_token_id(tokenizer), *processor.image_prompt_ids(), *processor.text_prompt_ids("")}
    used -= {processor.image_token_id}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if index >= size and (index in used or not reserved.fullmatch(token)):
            raise ValueError(
                f"tokenizer.json has the token {token!r} of id {index}, and config.json a vocab_size of {size}; take "
                "both files from one checkpoint, or resize the embeddings"
            )


def vocabulary_digest(tokenizer: Any) -> str:
    """Returns a digest of a tokenizer's tokens and their ids: with the same digest, ids mean the same tokens."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
