"""Tokenizers whose tokens join the ends of a prompt's parts, with chat templates in the layouts of known families."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# The items of a turn: images and texts.
ITEMS = (
    "{%- for item in message.content -%}{%- if item.type == 'image' -%}IMAGE{%- else -%}{{ item.text }}"
    "{%- endif -%}{%- endfor -%}"
)
CHATML = (
    "{%- for message in messages -%}"
    "{%- if loop.first and message.role != 'system' -%}"
    "{{ '<|im_start|>system\nYou are SYSTEM.<|im_end|>\n' }}{%- endif -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}CONTENT{{ '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def chat_template(family: str) -> str:
    """The chat template of a family."""
    mark = {
        "qwen": "<|vision_start|><|image_pad|><|vision_end|>",
        "gemma": "<start_of_image>",
        "smolvlm": "<image>",
        "internvl": "{{ '<IMG_CONTEXT>\n' }}",
    }.get(family, "")
    items = ITEMS.replace("IMAGE", mark)
    return {
        "qwen": CHATML.replace("CONTENT", items).replace("SYSTEM", "a helpful assistant"),
        "internvl": CHATML.replace("CONTENT", items).replace("SYSTEM", "InternVL"),
        "smollm": CHATML.replace("CONTENT", "{{ message.content }}").replace("SYSTEM", "SmolLM"),
        "gemma": (
            "{{ bos_token }}{%- for message in messages -%}{{ '<start_of_turn>' + message.role + '\n' }}"
            + items.replace("item.text", "item.text | trim")
            + "{{ '<end_of_turn>\n' }}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
        ),
        "smolvlm": (
            "<|im_start|>{%- for message in messages -%}{{ message.role | capitalize }}"
            "{%- if message.content[0].type == 'image' -%}{{ ':' }}{%- else -%}{{ ': ' }}{%- endif -%}"
            + items
            + "{{ '<end_of_utterance>\n' }}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
        ),
        "llava": (
            "{%- for message in messages -%}{{ message.role.upper() + ': ' }}"
            "{%- for item in message.content if item.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
            "{%- for item in message.content if item.type == 'text' -%}{{ item.text + ' ' }}{%- endfor -%}"
            "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
        ),
    }[family]


# The image token, and the special tokens in addition to it.
SPECIAL = {
    "qwen": ("<|image_pad|>", ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]),
    "gemma": (
        "<image_soft_token>",
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"],
    ),
    "smolvlm": ("<image>", ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"]),
    "internvl": ("<IMG_CONTEXT>", ["<|im_start|>", "<|im_end|>", "<img>", "</img>"]),
    "smollm": ("<image>", ["<|im_start|>", "<|im_end|>"]),
    "llava": ("<image>", ["<s>", "</s>"]),
}
BEGIN = {"gemma": "<bos>", "llava": "<s>"}
END = {"gemma": "<eos>", "smolvlm": "<end_of_utterance>", "llava": "</s>"}
# Words that are one token each; "_" stands for a space.
TOKENS = [
    *("a", "_a", "_man", "_in", "_red", "_coat", ".\n", "Continue", "_the", "_following", "_text"),
    *("USER", "_He", "_walks", "assistant", "Assistant"),
]
# As in Qwen: punctuation takes the line breaks after it along, and a word the space before it.
WORDS = Regex(r" ?[A-Za-z]+|[^\sA-Za-z]+[\n]*|\s*[\n]+|\s+")


def bpe(space: str, line: str, alphabet: list[str], **options: object) -> models.BPE:
    """A model whose tokens are the letters of an alphabet and `TOKENS`. space, line: their letters in it."""
    words = [word.replace("_", space).replace("\n", line) for word in TOKENS]
    merges = dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word)))
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    return models.BPE({token: index for index, token in enumerate(dict.fromkeys(tokens))}, list(merges), **options)


def chat_tokenizer(family: str, **changes: object) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens and the chat template of a family."""
    image, special = SPECIAL[family]
    tokenizer = Tokenizer(bpe("Ġ", "Ċ", sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, image])
    begin, end = BEGIN.get(family), END.get(family, "<|im_end|>")
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    settings = {"bos_token": begin, "eos_token": end, "pad_token": end, "chat_template": chat_template(family)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=[*special, image], **{**settings, **changes}
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in the layout of Llama: every text starts with a space, which joins the first word."""
    letters = [chr(code) for code in range(33, 127)]
    tokenizer = Tokenizer(bpe("▁", "\n", ["<unk>", "<s>", "</s>", "▁", "\n", *letters], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<image>"], **names)
