"""MllmReIDProcessor: converts person crops to pixels, and captions and targets to token ids."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import os
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from .crops import TEXT_OPTIONS, CropProcessor, as_list, crop_pixels, in_format, processor_files
from .weights import native_config

IGNORED = -100


class MllmReIDProcessor(CropProcessor, ProcessorMixin):
    r"""The image processor and the tokenizer of a LLaVA, for whole person crops (no centre crop) and two branches.

    The image branch and the text branch share one template: prefix, then image tokens or caption, then suffix. The
    target is tokenised alone and appended, so its ids are the same after an image and after the image's caption.

    Args:
        image_processor (`BaseImageProcessor`):
            Image processor that resizes to a height and a width.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that knows the image token.
        patch_size, vision_feature_select_strategy, num_additional_image_tokens, image_token, chat_template:
            As in `LlavaProcessor`.
        instruction (`str`, *optional*):
            The Common Instruction, which asks to continue a text.
        prompt_prefix, prompt_suffix (`str`, *optional*):
            The template. The suffix contains `{instruction}`.

    Source: the Common Instruction of MLLMReID, [arXiv 2401.13201](https://arxiv.org/abs/2401.13201).

    Example:

    ```python
    >>> from PIL import Image
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import CLIPImageProcessor, PreTrainedTokenizerFast
    >>> from modeling_mllmreid import MllmReIDProcessor

    >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<image>": 2, "a": 3, "coat": 4}, "<unk>"))
    >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")
    >>> image_processor = CLIPImageProcessor(size={"height": 56, "width": 28}, do_center_crop=False)
    >>> processor = MllmReIDProcessor(image_processor, tokenizer, patch_size=14)
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
        patch_size: int = 14,
        vision_feature_select_strategy: str = "default",
        num_additional_image_tokens: int = 1,
        image_token: str = "<image>",
        instruction: str = "Continue the following text.",
        prompt_prefix: str = "USER: ",
        prompt_suffix: str = "\n{instruction} ASSISTANT:",
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.image_token = image_token
        self.instruction = instruction
        self.prompt_prefix = prompt_prefix
        self.prompt_suffix = prompt_suffix
        self._check_settings()
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.check_size()

    def _check_settings(self) -> None:
        """Raises ValueError for a setting of the wrong type, which a foreign processor_config.json may have."""
        numbers = {"patch_size": 1, "num_additional_image_tokens": 0}
        for name, least in numbers.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {repr(value)[:60]}; give a whole number, {least} or more")
        for name in ("image_token", "instruction", "prompt_prefix", "prompt_suffix"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {repr(getattr(self, name))[:60]}; give text")
        if self.vision_feature_select_strategy not in ("default", "full"):
            strategy = repr(self.vision_feature_select_strategy)[:60]
            raise ValueError(f"vision_feature_select_strategy is {strategy}; give 'default' or 'full'")

    @classmethod
    def from_mllm_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        height: int = 252,
        width: int = 126,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "MllmReIDProcessor":
        """Creates a processor from the files of a native LLaVA: its tokenizer, its mean and its standard deviation.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A LLaVA's folder or its name on the Hub.
            height, width (`int`, *optional*, defaults to 252 and 126):
                Size in pixels that whole crops are resized to.
            revision (`str`, *optional*):
                Commit, tag or branch on the Hub.
            **kwargs:
                Further arguments of the class, such as `instruction`.

        Raises:
            OSError: if files are missing.
            ValueError: for a model that is no LLaVA and for settings that make no pixels.
        """
        options = {"revision": revision, "trust_remote_code": False}
        config = native_config(name_or_path, {} if revision is None else {"revision": revision})
        size = {"height": height, "width": width}
        with processor_files(name_or_path):
            processor = cls(
                AutoImageProcessor.from_pretrained(name_or_path, size=size, do_center_crop=False, **options),
                AutoTokenizer.from_pretrained(name_or_path, **options),
                patch_size=config.vision_config.patch_size,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                num_additional_image_tokens=1,
                **kwargs,
            )
            processor.check_pixels()
        return processor

    # ---- sizes and prompts ---------------------------------------------------------------------------------------

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens of a crop."""
        patches = (self.height // self.patch_size) * (self.width // self.patch_size)
        tokens: int = patches + self.num_additional_image_tokens - (self.vision_feature_select_strategy == "default")
        return tokens

    @property
    def image_prefix_ids(self) -> list[int]:
        """Token ids before the image tokens, with the begin-of-text token."""
        ids: list[int] = self.tokenizer(self.prompt_prefix).input_ids
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _suffix_ids(self, instruction: str | None) -> list[int]:
        # Not `format`, which would evaluate other braces of a foreign template.
        return self._ids(
            self.prompt_suffix.replace("{instruction}", self.instruction if instruction is None else instruction)
        )

    def image_prompt_ids(self, instruction: str | None = None) -> list[int]:
        """Returns prefix, image tokens, and suffix with an instruction, by default the processor's own."""
        return self.image_prefix_ids + [self.image_token_id] * self.num_image_tokens + self._suffix_ids(instruction)

    def caption_ids(self, caption: str) -> list[int]:
        """Returns a caption's ids. Raises ValueError if it contains the image token, which would stand for an image."""
        ids = self._ids(caption)
        if self.image_token_id in ids:
            raise ValueError(f"the caption {caption[:60]!r} holds the image token {self.image_token!r}; remove it")
        return ids

    def text_prompt_ids(self, caption: str, instruction: str | None = None) -> list[int]:
        """Returns prefix, caption, and suffix with an instruction, by default the processor's own."""
        return self.image_prefix_ids + self.caption_ids(caption) + self._suffix_ids(instruction)

    def target_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Returns a target's ids, tokenised alone and truncated to `max_length`."""
        return self.caption_ids(text)[:max_length]

    # ---- batches -------------------------------------------------------------------------------------------------

    def _padded(self, sequences: list[list[int]], value: int) -> torch.Tensor:
        longest = max(map(len, sequences), default=0)
        padded = [sequence + [value] * (longest - len(sequence)) for sequence in sequences]
        return torch.tensor(padded, dtype=torch.long).view(len(sequences), longest)

    def _pad_token_id(self) -> int:
        pad: int | None = self.tokenizer.pad_token_id
        end: int = self.tokenizer.eos_token_id
        return end if pad is None else pad

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
            "input_ids": self._padded(full, self._pad_token_id()),
            "attention_mask": self._padded([[1] * len(sequence) for sequence in full], 0),
            "labels": self._padded(labels, IGNORED),
        }

    def caption_mask(self, captions: list[list[int]], length: int) -> torch.Tensor:
        """Returns (B, length), True at the positions of the captions after the prefix. captions: lists of ids."""
        start = len(self.image_prefix_ids)
        positions = torch.arange(length)
        ends = torch.tensor([start + len(ids) for ids in captions], dtype=torch.long)
        return (positions >= start) & (positions < ends[:, None])

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
            captions = [self._caption_at(index, caption) for index, caption in enumerate(as_list(text))]
            sequences = [self.image_prefix_ids + ids for ids in captions]
            inputs["input_ids"] = self._padded(sequences, self._pad_token_id())
            inputs["attention_mask"] = self._padded([[1] * len(sequence) for sequence in sequences], 0)
            inputs["caption_mask"] = self.caption_mask(captions, inputs["input_ids"].shape[1])
        return in_format(inputs, return_tensors, device)

    def _caption_at(self, index: int, caption: Any) -> list[int]:
        if not isinstance(caption, str):
            raise ValueError(f"text {index}: of type {type(caption).__name__}: give a caption, a string")
        return self.caption_ids(caption)

    @staticmethod
    def travelling_code() -> tuple[Any, ...]:
        """Imports the files that the files imported above import; see the method of [`MllmReIDConfig`]."""
        from .backbone import Backbone
        from .backbone_gemma3 import Gemma3Backbone
        from .backbone_internvl import InternVLBackbone
        from .backbone_llava import LlavaBackbone
        from .backbone_qwen_vl import QwenVLBackbone
        from .backbone_smolvlm import SmolVLMBackbone
        from .backbones import check_family
        from .fields import check_types
        from .images import open_image
        from .publishing import PrivatePush, without_local_paths
        from .tensors import in_format_of
        from .towers import Tower

        families = (Gemma3Backbone, InternVLBackbone, LlavaBackbone, QwenVLBackbone, SmolVLMBackbone, Backbone, Tower)
        return open_image, without_local_paths, PrivatePush, check_types, check_family, in_format_of, *families


MllmReIDProcessor.register_for_auto_class()
