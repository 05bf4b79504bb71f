"""MllmReIDProcessor: converts person crops to pixels, and captions and targets to token ids."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import os
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from .backbones import backbone_of
from .crops import (
    TEXT_OPTIONS,
    CropProcessor,
    as_list,
    crop_image_processor,
    crop_pixels,
    in_format,
    processor_files,
)
from .fields import check_multiples, check_unit, current_processor_fields
from .prompts import (
    PLAIN_TEMPLATE,
    Prompt,
    Template,
    check_text,
    check_vocabulary,
    pad_token_id,
    reserved_texts,
    templates_of,
    vocabulary_digest,
)
from .weights import native_config

IGNORED = -100
# What a model is asked about two crops.
PAIR_QUESTION = "Do both images show the same person?"
PAIR_ANSWERS = ("Yes", "No")
# Settings of a native image processor that change pixel values, apart from the size.
PIXEL_SETTINGS = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class MllmReIDProcessor(CropProcessor, ProcessorMixin):
    r"""The image processor and the tokenizer of a multimodal LLM, for whole person crops and two branches.

    Each branch has a template, a whole text: the image branch one with the image, the text branch one with a caption. A
    prompt is tokenized as one text. The target is appended as ids, so it is the same after an image and after the
    image's caption.

    Args:
        image_processor (`BaseImageProcessor`):
            Image processor that resizes to a height and a width.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that knows the image token and gives character offsets.
        unit (`int`, *optional*, defaults to 14):
            Pixels of an image token's side; the height and the width of a crop are multiples of it.
        extra_image_tokens (`int`, *optional*, defaults to 0):
            Image tokens in addition to the grid, such as a class token.
        image_token (`str`, *optional*, defaults to `"<image>"`):
            Token that stands for an image.
        instruction (`str`, *optional*):
            The Common Instruction, which asks to continue a text.
        image_template, text_template (`str`, *optional*):
            Prompts of the two branches, with `{image}` or `{caption}`, and `{instruction}`. Text around the image
            tokens is part of the template. `from_mllm_pretrained` takes them from the chat template.
        chat_template (`str`, *optional*):
            As in transformers.

    Raises:
        ValueError: for a wrong type, a size that does not fit, a template without its places, a missing image token.

    Source: the Common Instruction of [arXiv 2401.13201](https://arxiv.org/abs/2401.13201).

    Example:

    ```python
    >>> from PIL import Image
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import CLIPImageProcessor, PreTrainedTokenizerFast
    >>> from modeling_mllmreid import MllmReIDProcessor

    >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<image>": 2, "a": 3, "coat": 4}, "<unk>"))
    >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    >>> tokenizer = PreTrainedTokenizerFast(
    ...     tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=["<image>"]
    ... )
    >>> image_processor = CLIPImageProcessor(size={"height": 56, "width": 28}, do_center_crop=False)
    >>> processor = MllmReIDProcessor(image_processor, tokenizer, unit=14)
    >>> processor(images=[Image.new("RGB", (64, 128))])["pixel_values"].shape
    torch.Size([1, 3, 56, 28])
    >>> processor.num_image_tokens
    8
    >>> processor(text=["a coat", "a red coat"])["input_ids"]
    tensor([[0, 3, 4, 1],
            [0, 3, 0, 4]])

    ```
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        unit: int = 14,
        extra_image_tokens: int = 0,
        image_token: str = "<image>",
        instruction: str = "Continue the following text.",
        image_template: str = PLAIN_TEMPLATE,
        text_template: str = PLAIN_TEMPLATE.replace("{image}", "{caption}"),
        chat_template: str | None = None,
    ):
        self.unit = unit
        self.extra_image_tokens = extra_image_tokens
        self.image_token = image_token
        self.instruction = instruction
        self.image_template = image_template
        self.text_template = text_template
        self._check_settings()
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        # A tokenizer gives the id of its unknown token for a text that is no token of its own.
        if self.image_token_id is None or tokenizer.convert_ids_to_tokens(self.image_token_id) != image_token:
            raise ValueError(
                f"tokenizer.json has no token {image_token!r}, which stands for an image; take the tokenizer of the "
                "checkpoint, or add this token to it"
            )
        self._reserved = reserved_texts(tokenizer, image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.check_size()
        check_multiples(self.height, self.width, unit)
        if self.num_image_tokens < 1:
            raise ValueError(f"extra_image_tokens is {extra_image_tokens}; a crop of this size has no image token left")

    def _check_settings(self) -> None:
        """Raises ValueError for a setting of the wrong type, which a foreign processor_config.json may have."""
        if type(self.unit) is not int or self.unit < 1:
            raise ValueError(f"unit is {repr(self.unit)[:60]}; give a whole number, 1 or more")
        if type(self.extra_image_tokens) is not int:
            raise ValueError(f"extra_image_tokens is {repr(self.extra_image_tokens)[:60]}; give a whole number")
        for name in ("image_token", "instruction", "image_template", "text_template"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {repr(getattr(self, name))[:60]}; give text")
        self._template("image"), self._template("text")

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Creates a processor from the fields of its file, as transformers does; reads those of older versions."""
        return super().from_args_and_dict(args, current_processor_fields(processor_dict), **kwargs)

    @classmethod
    def from_mllm_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        height: int | None = None,
        width: int | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "MllmReIDProcessor":
        """Creates a processor from the files of a native multimodal LLM: its tokenizer, pixel values, chat template.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A model's folder or its name on the Hub.
            height, width (`int`, *optional*):
                Size in pixels that whole crops are resized to. Defaults to the family's size.
            revision (`str`, *optional*):
                Commit, tag or branch on the Hub.
            **kwargs:
                Further arguments of the class, such as `instruction`.

        Raises:
            OSError: if files are missing.
            ValueError: for a model of no known family, a size that does not fit, a tokenizer without the image token, a
                chat template that cannot be used, and settings that make no pixels.
        """
        options = {"revision": revision, "trust_remote_code": False}
        config = native_config(name_or_path, {} if revision is None else {"revision": revision})
        backbone = backbone_of(config)
        check_unit(backbone, config.vision_config)
        size = {"height": height or backbone.default_size[0], "width": width or backbone.default_size[1]}
        check_multiples(size["height"], size["width"], backbone.unit)
        with processor_files(name_or_path):
            native = AutoImageProcessor.from_pretrained(name_or_path, **options)
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **options)
            token = tokenizer.added_tokens_decoder.get(config.image_token_id)
            if token is None:
                raise ValueError(
                    f"tokenizer.json has no special token of id {config.image_token_id}, the image token of "
                    "config.json; take both files from one checkpoint"
                )
            if not {"image_template", "text_template"} <= kwargs.keys():
                # The processor's own chat template comes first: that of the tokenizer may take no image.
                stored = cls.get_processor_dict(name_or_path, **options)[0].get("chat_template")
                chat_template = tokenizer.chat_template if stored is None else stored
                marks = (backbone.image_begin, backbone.image_end)
                image_template, text_template = templates_of(tokenizer, chat_template, token.content, *marks)
                kwargs = {"image_template": image_template, "text_template": text_template, **kwargs}
            processor = cls(
                # Not the family's own: several make flattened patches or tiles, and some need torchvision.
                crop_image_processor(size, **{name: getattr(native, name) for name in PIXEL_SETTINGS}),
                tokenizer,
                unit=backbone.unit,
                extra_image_tokens=backbone.extra_image_tokens,
                image_token=token.content,
                **kwargs,
            )
            processor.check_pixels()
            check_vocabulary(processor, config.get_text_config().vocab_size)
        return processor

    # ---- prompts -------------------------------------------------------------------------------------------------

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens of a crop."""
        return (self.height // self.unit) * (self.width // self.unit) + self.extra_image_tokens

    def _template(self, branch: str) -> Template:
        name = f"{branch}_template"
        return Template(name, getattr(self, name), "image" if branch == "image" else "caption")

    def _image_prompt(self, instruction: str | None) -> Prompt:
        count = self.num_image_tokens
        (prompt,) = self._template("image").prompts(
            self.tokenizer, [self.image_token * count], [self.instruction if instruction is None else instruction]
        )
        image = [self.image_token_id] * count
        if prompt.ids[prompt.start : prompt.end] != image or prompt.ids.count(self.image_token_id) != count:
            raise ValueError(
                f"the image prompt has {prompt.ids.count(self.image_token_id)} image tokens {self.image_token!r}, not "
                f"{count} in a row; remove the token from image_template and the instruction, and make it a special "
                "token of the tokenizer"
            )
        return prompt

    @property
    def image_prefix_ids(self) -> list[int]:
        """Token ids before the image tokens."""
        prompt = self._image_prompt(None)
        return prompt.ids[: prompt.start]

    def image_prompt_ids(self, instruction: str | None = None) -> list[int]:
        """Returns the ids of the image prompt with an instruction, by default the processor's own."""
        return self._image_prompt(instruction).ids

    def pair_question_ids(self) -> list[int]:
        """Returns the ids of the question about two crops, which follows the image tokens of both.

        Raises:
            ValueError: if the tokenizer joins the image and the text after it.
        """
        prompt, plain = self._image_prompt(PAIR_QUESTION), self._image_prompt(None)
        if prompt.ids[: prompt.end] != plain.ids[: plain.end]:
            raise ValueError("image_template gives other ids before the end of the image with another instruction")
        return prompt.ids[prompt.end :]

    def pair_answer_ids(self) -> list[int]:
        """Returns the ids of yes and of no, the first of each if a word has several.

        Raises:
            ValueError: if the tokenizer does not tell both words apart.
        """
        answers = [self.tokenizer(word, add_special_tokens=False).input_ids[:1] for word in PAIR_ANSWERS]
        if answers[0] == answers[1] or not all(answers) or [self.tokenizer.unk_token_id] in answers:
            raise ValueError("the tokenizer has no tokens for Yes and No; add these words to it")
        return [answer[0] for answer in answers]

    def text_prompts(self, captions: list[str], instructions: list[str] | None = None) -> list[Prompt]:
        """Tokenizes prompts of the text branch.

        Args:
            captions (`list[str]`):
                B captions; an empty one has no positions.
            instructions (`list[str]`, *optional*):
                B instructions; by default the processor's own.

        Returns:
            `list[Prompt]`: ids, and the positions of the caption.

        Raises:
            ValueError: for a caption with the image token or another special token.
        """
        for caption in captions:
            self.check_text(caption)
        prompts = self._template("text").prompts(
            self.tokenizer, captions, instructions or [self.instruction] * len(captions)
        )
        for caption, prompt in zip(captions, prompts, strict=True):
            if self.image_token_id in prompt.ids:
                raise ValueError(
                    f"the prompt of {caption[:60]!r} holds the image token {self.image_token!r}; remove it"
                )
        return prompts

    def text_prompt_ids(self, caption: str, instruction: str | None = None) -> list[int]:
        """Returns the ids of the text prompt with an instruction, by default the processor's own."""
        return self.text_prompts([caption], None if instruction is None else [instruction])[0].ids

    def check_text(self, text: str) -> None:
        """Raises ValueError for a text with the image token, another special token, or half of a character."""
        check_text(text, self._reserved, self.image_token)

    def target_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Returns a target's ids, tokenized alone and truncated to `max_length`."""
        self.check_text(text)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids[:max_length]

    @property
    def vocabulary_digest(self) -> str:
        """Digest of the tokenizer's tokens and their ids: with the same digest, ids mean the same tokens."""
        return vocabulary_digest(self.tokenizer)

    # ---- batches -------------------------------------------------------------------------------------------------

    def _padded(self, sequences: list[list[int]], value: int) -> torch.Tensor:
        longest = max(map(len, sequences), default=0)
        padded = [sequence + [value] * (longest - len(sequence)) for sequence in sequences]
        return torch.tensor(padded, dtype=torch.long).view(len(sequences), longest)

    def build_inputs(self, prompts: list[list[int]], targets: list[list[int]]) -> dict[str, torch.Tensor]:
        """Appends targets to prompts and pads on the right.

        Args:
            prompts, targets (`list[list[int]]`):
                Token ids of B prompts and of their targets.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `labels` of shape (B, T); labels are -100
            except at the targets.
        """
        full = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        labels = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        return {
            "input_ids": self._padded(full, pad_token_id(self.tokenizer)),
            "attention_mask": self._padded([[1] * len(sequence) for sequence in full], 0),
            "labels": self._padded(labels, IGNORED),
        }

    @staticmethod
    def caption_mask(prompts: list[Prompt], length: int) -> torch.Tensor:
        """Returns (B, length), True at the positions of the captions in B prompts."""
        positions = torch.arange(length)
        starts, ends = (
            torch.tensor([getattr(prompt, side) for prompt in prompts], dtype=torch.long)[:, None]
            for side in ("start", "end")
        )
        return (positions >= starts) & (positions < ends)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        return_tensors: str | None = None,
        device: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares images for `encode_images` and captions for `encode_text`.

        Args:
            images (*optional*):
                A path or http(s) address, a PIL image, a NumPy array or a tensor, of any size; a list of them; or a
                batch of shape (B, C, H, W). Arrays are uint8 or floats in 0..1, with channels first or last.
            text (`str` or `list[str]`, *optional*):
                Captions; they are padded to the longest.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                "pt" for PyTorch tensors or "np" for NumPy arrays.
            device (`str` or `torch.device`, *optional*):
                Device of the tensors.
            **kwargs:
                Options of the image processor.

        Returns:
            [`BatchFeature`]: `pixel_values` of shape (B, 3, H, W) for images; `input_ids`, `attention_mask` and
            `caption_mask` of shape (B, T) for captions. An empty list gives a batch of length 0.

        Raises:
            FileNotFoundError, ValueError: with the index of an image or a caption that cannot be used.
        """
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        inputs = {}
        if images is not None:
            options = {key: value for key, value in kwargs.items() if key not in TEXT_OPTIONS}
            inputs["pixel_values"] = crop_pixels(self.image_processor, images, **options)
        if text is not None:
            captions = as_list(text)
            for index, caption in enumerate(captions):
                if not isinstance(caption, str):
                    raise ValueError(f"text {index}: of type {type(caption).__name__}: give a caption, a string")
            prompts = self.text_prompts(captions)
            # Attention is causal: what follows the caption does not reach it.
            sequences = [prompt.ids[: prompt.end] for prompt in prompts]
            inputs["input_ids"] = self._padded(sequences, pad_token_id(self.tokenizer))
            inputs["attention_mask"] = self._padded([[1] * len(sequence) for sequence in sequences], 0)
            inputs["caption_mask"] = self.caption_mask(prompts, inputs["input_ids"].shape[1])
        return in_format(inputs, return_tensors, device)

    @staticmethod
    def travelling_code() -> None:
        """Imports the files that the files imported above import; see the method of [`MllmReIDConfig`]."""
        from .backbone import Image  # noqa: F401
        from .backbone_gemma3 import Gemma3Backbone  # noqa: F401
        from .backbone_internvl import InternVLBackbone  # noqa: F401
        from .backbone_llava import LlavaBackbone  # noqa: F401
        from .backbone_qwen_vl import QwenVLBackbone  # noqa: F401
        from .backbone_smolvlm import SmolVLMTower  # noqa: F401
        from .backbone_video_llama3 import VideoLlama3Tower  # noqa: F401
        from .encoders import ClipTower  # noqa: F401
        from .images import open_image  # noqa: F401
        from .publishing import without_local_paths  # noqa: F401
        from .reid_osnet import ReIDOSNetConfig  # noqa: F401
        from .reid_resnet import ReIDResNetConfig  # noqa: F401
        from .reid_swin import ReIDSwinConfig  # noqa: F401
        from .reid_vit import ReIDViTConfig  # noqa: F401
        from .sentence_transformers_mllmreid import PersonEmbedder  # noqa: F401
        from .shipped_models import shipped_folder  # noqa: F401
        from .tensors import at_least_float32  # noqa: F401
        from .tower_packed import PackedTower  # noqa: F401
        from .tower_qwen_vl import QwenTower  # noqa: F401
        from .towers import TowerOutput  # noqa: F401


MllmReIDProcessor.register_for_auto_class()
