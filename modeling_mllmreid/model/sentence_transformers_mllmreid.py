"""PersonEmbedder: the model as the module of a `SentenceTransformer`; `modules.json` of a checkpoint names it."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from .images import SUFFIXES

# In a `try`: transformers wants every other import of a checkpoint's files to be installed, even where it is not run.
try:
    from sentence_transformers import __version__ as installed
    from sentence_transformers.base.modules import InputModule
except ImportError:
    installed = "0"
if int(installed.partition(".")[0]) < 6:
    # 5.4 refuses the images of a module that takes images alone, and versions before it know no images.
    raise ImportError("sentence-transformers 6 or newer is needed: pip install --upgrade sentence-transformers")


class PersonEmbedder(InputModule):
    """Embeds person crops, and captions where the model was trained for them, in `SentenceTransformer.encode`.

    The embeddings are those of `encode_images` and `encode_text`, of length 1.

    Args:
        model ([`MllmReIDModel`] or [`MllmReIDVisionModel`]):
            The model.
        processor ([`MllmReIDProcessor`] or [`MllmReIDVisionProcessor`]):
            Its processor.
    """

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model, self.processor = model, processor

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint of any form; sentence-transformers calls it.

        Args:
            model_name_or_path (`str`):
                The checkpoint's folder or its name on the Hub.
            token, cache_folder, revision, local_files_only, trust_remote_code (*optional*):
                As in `from_pretrained`, where `cache_folder` is called `cache_dir`.
            model_kwargs, processor_kwargs (`dict`, *optional*):
                Arguments of `from_pretrained` of the model and of the processor.
            config_kwargs (`dict`, *optional*):
                Fields of the configuration, such as `test_feature`.
            backend (`str`, *optional*, defaults to `"torch"`):
                No other is possible.
            **kwargs:
                Arguments of modules that have a sub-folder.

        Raises:
            ValueError: for another backend, and as in `from_pretrained`.
        """
        if backend != "torch":
            raise ValueError(f"backend {backend}: this model runs in torch alone: leave it out")
        hub = {"token": token, "cache_dir": cache_folder, "revision": revision, "local_files_only": local_files_only}
        options = {name: value for name, value in hub.items() if value is not None}
        options["trust_remote_code"] = trust_remote_code
        model = AutoModel.from_pretrained(
            model_name_or_path, **options, **{**(config_kwargs or {}), **(model_kwargs or {})}
        )
        processor = AutoProcessor.from_pretrained(model_name_or_path, **{**options, **(processor_kwargs or {})})
        return cls(model.eval(), processor)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Saves the checkpoint into a folder. Raises ValueError without `safe_serialization`."""
        if not safe_serialization:
            raise ValueError("safe_serialization is off: weights are saved as safetensors only: leave it out")
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @property
    def modalities(self) -> list[Any]:
        """Kinds of inputs: images, and texts if captions were trained to find the images (`reid_text`)."""
        config = self.model.config
        # `encode_text` is in the space of this feature.
        reads_texts = config.reid_text and config.test_feature == "llm"
        return ["text", "image"] if reads_texts else ["image"]

    def get_embedding_dimension(self) -> int:
        """Returns the size D of an embedding."""
        config = self.model.config
        with torch.inference_mode():
            return int(self.model.encode_images(torch.zeros(0, 3, config.height, config.width)).shape[1])

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Prepares a batch of images or a batch of texts.

        Args:
            inputs (`Sequence`):
                Images of the processor, such as paths and PIL images, or captions. A string that ends like the name
                of an image file is a path. `{"image": image}` and `{"text": text}` stand for their values.
            prompt (`str`, *optional*):
                Text in front of each caption.
            **kwargs:
                Arguments that other models need, such as `task`.

        Returns:
            `dict[str, torch.Tensor]`: output of the processor.

        Raises:
            FileNotFoundError, ValueError: with the index of an image or a caption that cannot be used, for a batch of
                both, and for a prompt in front of images.
        """
        values = [next(iter(value.values())) if isinstance(value, dict) else value for value in inputs]
        texts = [isinstance(value, str) and not _is_image_name(value) for value in values]
        if any(texts) and not all(texts):
            raise ValueError("a batch has images and texts: encode the ones, then the others")
        if all(texts):
            return dict(self.processor(text=[f"{prompt or ''}{text}" for text in values]))
        if prompt:
            raise ValueError(f"prompt {prompt[:60]!r}: images have none: leave it out")
        return dict(self.processor(images=values))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, float32 of shape (B, D), to the output of `preprocess`."""
        if "pixel_values" in features:
            embeddings: Tensor = self.model.encode_images(features["pixel_values"])
        else:
            names = ("input_ids", "attention_mask", "caption_mask")
            embeddings = self.model.encode_text(*(features[name] for name in names))
        return {**features, "sentence_embedding": embeddings}


def _is_image_name(text: str) -> bool:
    """Returns whether a text is an address, or ends like the name of an image file."""
    return text.startswith(("http://", "https://")) or os.path.splitext(text)[1].lower() in SUFFIXES
