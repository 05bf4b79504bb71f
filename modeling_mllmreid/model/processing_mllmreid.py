"""MllmReIDProcessor: person crops to pixels, captions and targets to ids, under one prompt template."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import os

import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from .crops import TEXT_OPTIONS, CropProcessor, as_list, crop_pixels, in_format, processor_files
from .weights import native_config

IGNORED = -100


class MllmReIDProcessor(CropProcessor, ProcessorMixin):
    r"""Image processor and tokenizer of a LLaVA, set up for whole person crops (no centre crop) and for two branches.

    Both branches share one template, prefix + (image tokens or caption) + suffix, and the target is tokenised alone and
    appended: so it is the same ids after an image and after its caption.

    patch_size, vision_feature_select_strategy, num_additional_image_tokens, image_token: as in `LlavaProcessor`.
    instruction: the Common Instruction, "continue the text".
    prompt_prefix, prompt_suffix: the template; the suffix holds `{instruction}`.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        instruction="Continue the following text.",
        prompt_prefix="USER: ",
        prompt_suffix="\n{instruction} ASSISTANT:",
        chat_template=None,
        **kwargs,
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
        """Raises ValueError for a setting of a foreign processor_config.json that none of our files can hold."""
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
        cls, name_or_path: str | os.PathLike, height: int = 252, width: int = 126, revision: str | None = None, **kwargs
    ) -> "MllmReIDProcessor":
        """From a native LLaVA's files: tokenizer and pixel statistics, crops resized to height x width, none cut."""
        own_code = {"revision": revision, "trust_remote_code": False}
        config = native_config(name_or_path, {} if revision is None else {"revision": revision})
        size = {"height": height, "width": width}
        with processor_files(name_or_path):
            processor = cls(
                AutoImageProcessor.from_pretrained(name_or_path, size=size, do_center_crop=False, **own_code),
                AutoTokenizer.from_pretrained(name_or_path, **own_code),
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
        """Image tokens that one crop takes in a prompt."""
        patches = (self.height // self.patch_size) * (self.width // self.patch_size)
        return patches + self.num_additional_image_tokens - (self.vision_feature_select_strategy == "default")

    @property
    def image_prefix_ids(self) -> list[int]:
        """Ids before the image tokens, begin-of-text included."""
        return self.tokenizer(self.prompt_prefix).input_ids

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _suffix_ids(self, instruction: str | None) -> list[int]:
        # Not `format`, which would follow whatever else a foreign template says.
        return self._ids(
            self.prompt_suffix.replace("{instruction}", self.instruction if instruction is None else instruction)
        )

    def image_prompt_ids(self, instruction: str | None = None) -> list[int]:
        """Prefix, image tokens, suffix with the instruction (the processor's own by default)."""
        return self.image_prefix_ids + [self.image_token_id] * self.num_image_tokens + self._suffix_ids(instruction)

    def caption_ids(self, caption: str) -> list[int]:
        """A caption's ids. Raises ValueError where it holds a literal image token: it would be read as an image."""
        ids = self._ids(caption)
        if self.image_token_id in ids:
            raise ValueError(f"the caption {caption[:60]!r} holds the image token {self.image_token!r}; remove it")
        return ids

    def text_prompt_ids(self, caption: str, instruction: str | None = None) -> list[int]:
        """Prefix, caption, suffix with the instruction (the processor's own by default)."""
        return self.image_prefix_ids + self.caption_ids(caption) + self._suffix_ids(instruction)

    def target_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """A target's ids, tokenised alone, cut to `max_length`."""
        return self.caption_ids(text)[:max_length]

    # ---- batches -------------------------------------------------------------------------------------------------

    def _padded(self, rows: list[list[int]], value: int) -> torch.Tensor:
        longest = max(map(len, rows), default=0)
        padded = [row + [value] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), longest)

    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id

    def rows(self, prompts: list[list[int]], targets: list[list[int]]) -> dict[str, torch.Tensor]:
        """Prompts with their targets appended, right-padded: `input_ids`, `attention_mask`, `labels`, each (B, T)."""
        full = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        labels = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        return {
            "input_ids": self._padded(full, self._pad_token_id()),
            "attention_mask": self._padded([[1] * len(row) for row in full], 0),
            "labels": self._padded(labels, IGNORED),
        }

    def caption_mask(self, captions: list[list[int]], length: int) -> torch.Tensor:
        """(B, length), True at the captions' positions after the prefix. captions: lists of caption ids."""
        start = len(self.image_prefix_ids)
        positions = torch.arange(length)
        ends = torch.tensor([start + len(ids) for ids in captions], dtype=torch.long)
        return (positions >= start) & (positions < ends[:, None])

    def __call__(self, images=None, text=None, *, return_tensors=None, device=None, **kwargs) -> BatchFeature:
        """Inputs of `encode_images` (`pixel_values`), of `encode_text` (`input_ids`, `attention_mask`, `caption_mask`).

        images: a path or http(s) address, a PIL image, a NumPy array or tensor, of any size, a list of them, or a batch
        (B, C, H, W); arrays are uint8, or floats in 0..1, in either order of channels. text: a caption or a list of
        them, padded to the longest. An empty list gives inputs of length 0. return_tensors: "pt", also where it is left
        out, or "np". device: where the tensors go. Other options are the image processor's.
        Raises ValueError, or FileNotFoundError, naming the position of an image or caption that cannot be used.
        """
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        data = {}
        if images is not None:
            options = {key: value for key, value in kwargs.items() if key not in TEXT_OPTIONS}
            data["pixel_values"] = crop_pixels(self.image_processor, images, **options)
        if text is not None:
            captions = [self._caption_at(place, caption) for place, caption in enumerate(as_list(text))]
            rows = [self.image_prefix_ids + ids for ids in captions]
            data["input_ids"] = self._padded(rows, self._pad_token_id())
            data["attention_mask"] = self._padded([[1] * len(row) for row in rows], 0)
            data["caption_mask"] = self.caption_mask(captions, data["input_ids"].shape[1])
        return in_format(data, return_tensors, device)

    def _caption_at(self, place: int, caption) -> list[int]:
        if not isinstance(caption, str):
            raise ValueError(f"text {place}: of type {type(caption).__name__}: give a caption, a string")
        return self.caption_ids(caption)

    @staticmethod
    def travelling_code() -> tuple:
        """Of the files that those imported above import: as in [`MllmReIDConfig`], this file names every one."""
        from .images import open_image
        from .publishing import PrivatePush, without_local_paths

        return open_image, without_local_paths, PrivatePush


MllmReIDProcessor.register_for_auto_class()
