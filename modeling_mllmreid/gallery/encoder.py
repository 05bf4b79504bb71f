"""The model of a gallery, loaded once: it embeds photos and words."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.calibration import Calibration
from ..evaluation.embedding import embed_feature
from ..evaluation.onnx_encoder import OnnxEncoder
from ..evaluation.pair_fusion import PairFusion
from ..evaluation.threshold import Threshold, load_thresholds
from ..model.shipped_models import shipped_onnx
from ..options.arguments import MethodArguments, ModelArguments, OnnxArguments
from ..options.parser import build_options, read_mapping
from ..retrieval.embeddings import weights_digest
from ..training.embedder import load_embedder
from ..utils.errors import UserError
from .model import EncoderSettings, GalleryModel

BATCH = 64


class ModelEncoder:
    """A model that embeds photos and, if it was trained for it, words.

    Args:
        arguments ([`ModelArguments`]): The model, its revision and number format.
        fields (`Mapping[str, Any]`, *optional*): Fields of its configuration to replace.
        onnx ([`OnnxArguments`], *optional*): How an ONNX file takes images.
        flip_test (`bool`): Average the features of a photo and its mirror image.

    Raises:
        UserError: The model cannot be loaded.
    """

    def __init__(
        self,
        arguments: ModelArguments,
        fields: Mapping[str, Any] | None = None,
        onnx: OnnxArguments | None = None,
        flip_test: bool = False,
    ):
        self.arguments, self.fields, self.flip_test = arguments, dict(fields or {}), flip_test
        # The same embeddings, without the seconds that the import of torch takes.
        light = None if self.fields or find_spec("onnxruntime") is None else shipped_onnx(arguments.model)
        loaded = arguments if light is None else replace(arguments, model=str(light))
        self.model, self.processor = load_embedder(loaded, self.fields, onnx)
        # A model holds buffers of one forward pass.
        self._lock = threading.Lock()
        self._explained: tuple[Any, Any] | None = None
        self._settings = self._find_settings()

    def settings(self) -> EncoderSettings:
        """Returns the model and its settings."""
        return self._settings

    def _find_settings(self) -> EncoderSettings:
        """Returns the settings; all processes of a run compute them, as they embed a crop together."""
        name = self.arguments.model_name
        if name == self.arguments.model and os.path.exists(name):
            name = os.path.abspath(name)  # loads from any working directory
        is_file = isinstance(self.model, OnnxEncoder) and shipped_onnx(self.arguments.model) is None
        stored = self.model.metadata() if isinstance(self.model, OnnxEncoder) and is_file else {}
        return EncoderSettings(
            model=name,
            revision=self.arguments.revision,
            dtype=self.arguments.dtype_name,
            weights=stored["weights"] if stored else weights_digest(_folder(self.arguments)),
            feature=self.model.config.test_feature,  # type: ignore[arg-type]
            numbers=self.encode([_blank()]).shape[1],
            height=self.processor.height,
            width=self.processor.width,
            fields=self.fields,
            onnx=stored.get("onnx"),
            flip_test=self.flip_test,
        )

    def encode(self, images: Sequence[Any]) -> np.ndarray:
        """Embeds paths or PIL images. Returns (N, D) float32, L2-normalised."""
        with self._lock:
            return embed_feature(
                self.model,
                self.processor,
                images,
                batch_size=BATCH,
                flip_test=self.flip_test,
                progress=len(images) > BATCH,
            )

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds descriptions. Returns (N, D) float32. Raises UserError if the model was not trained for it."""
        name = self.arguments.model_name
        if isinstance(self.model, OnnxEncoder):
            raise UserError(f"words: model {name} has no language model: give a photo")
        from ..evaluation.text_queries import TEXT_FEATURE, embed_captions
        from ..model import MllmReIDModel, MllmReIDProcessor

        model, processor, config = self.model, self.processor, self.model.config
        if not isinstance(model, MllmReIDModel) or not isinstance(processor, MllmReIDProcessor):
            raise UserError(f"words: model {name} has no language model: give a photo")
        if not config.reid_text or config.test_feature != TEXT_FEATURE:
            raise UserError(
                f"words: model {name} was not trained to search by words: give a photo, or a model that was trained "
                f"with --reid_text true and has the test feature {TEXT_FEATURE}"
            )
        with self._lock:
            return embed_captions(model, processor, texts, progress=False)

    def relevance(self, image: Any, feature: np.ndarray) -> np.ndarray:
        """Returns how much each place of an image adds to its similarity with a feature, see `image_relevance`."""
        from ..evaluation.relevance import image_relevance  # it needs torch

        with self._lock:
            if self._explained is None:
                whole = isinstance(self.model, OnnxEncoder) and shipped_onnx(self.arguments.model) is not None
                # An ONNX file has no gradients; the package has the weights of its own model too.
                loaded = load_embedder(self.arguments, self.fields) if whole else (self.model, self.processor)
                self._explained = loaded
            model, processor = self._explained
            return image_relevance(model, processor, image, feature, feature=self._settings.feature)

    def pair_fusion(self) -> PairFusion:
        """Returns what pair scores and distances mean together. Raises UserError if the model compares no pairs."""
        name, changed = self.arguments.model_name, [*self.fields, *(["flip_test"] if self.flip_test else [])]
        if isinstance(self.model, OnnxEncoder) or not _has_language_model(self.model):
            raise UserError(
                f"verify_top: model {name} has no language model, which compares pairs: leave it out, or compute the "
                "features again with a checkpoint that was trained with pair_weight (gallery reembed)"
            )
        if set(changed) - {"test_feature"}:
            raise UserError(
                f"verify_top: the fusion holds for the settings of the training, and the gallery has others "
                f"({', '.join(changed)}): leave it out, or compute the features again without them (gallery reembed)"
            )
        from ..evaluation.verified_report import fusion_of  # it needs torch

        return fusion_of(self.model, self.arguments.model, self.arguments.revision)

    def pair_scores(self, photos: Sequence[Any], pictures: Sequence[Any]) -> np.ndarray:
        """Compares each photo with each picture, see `score_shortlist`; `pair_fusion` says whether the model can.

        Returns (photos, pictures) float32: logit of yes minus logit of no.
        """
        from ..evaluation.pair_scores import score_shortlist  # it needs torch

        model: Any = self.model
        processor: Any = self.processor
        places = np.tile(np.arange(len(pictures)), (len(photos), 1))
        with self._lock:
            return score_shortlist(
                model, processor, photos, pictures, places, batch_size=BATCH, progress=places.size > BATCH
            )[0]

    def describe(self, images: Sequence[Any]) -> list[str]:
        """Writes the model's text about each of N PIL images, see `describe_crops`.

        Raises UserError if the model has no language model.
        """
        model: Any = self.model
        processor: Any = self.processor
        if isinstance(model, OnnxEncoder) or not _has_language_model(model):
            raise UserError(
                f"reasons: model {self.arguments.model_name} has no language model, which describes crops: leave it "
                "out, or compute the features again with a multimodal LLM (gallery reembed)"
            )
        from ..text.captioning import describe_crops  # it needs torch

        with self._lock:
            return describe_crops(model, processor, images)

    def threshold(self) -> float | None:
        """Returns the distance beyond which nobody is found, chosen on validation people; None if there is none."""
        stored = self._stored()
        return None if stored is None or stored.metric != "cosine" else stored.distance

    def calibration(self) -> Calibration | None:
        """Returns what distances mean, for groups of unknown people; None if the checkpoint has no calibration."""
        stored = self._stored()
        return None if stored is None else stored.calibration

    def _stored(self) -> Threshold | None:
        """Returns the threshold of the checkpoint; None for other settings than those it was chosen with."""
        if os.path.isfile(self.arguments.model) or self.flip_test or set(self.fields) - {"test_feature"}:
            return None
        return load_thresholds(self.arguments.model, self.arguments.revision).get(self.model.config.test_feature)


def named_encoder(model: str) -> ModelEncoder:
    """Loads a model by its name alone."""
    return ModelEncoder(ModelArguments(model))


def load_encoder(stored: GalleryModel, model: str | None = None) -> ModelEncoder:
    """Loads the model that computes the features of a gallery.

    Args:
        stored ([`GalleryModel`]): The metadata of the gallery.
        model (`str`, *optional*): Where the model is now, if it was moved.

    Returns:
        [`ModelEncoder`]

    Raises:
        UserError: The model is not there, or the metadata is not valid.
    """
    if model is None and os.path.isabs(stored.model) and not os.path.exists(stored.model):
        raise UserError(f"model {stored.model}: no longer exists: give its new place with --model")
    where = "metadata of the gallery"
    (fields,) = build_options((MethodArguments,), read_mapping((MethodArguments,), stored.fields, where), where)
    (onnx,) = build_options((OnnxArguments,), read_mapping((OnnxArguments,), stored.onnx or {}, where), where)
    arguments = ModelArguments(model or stored.model, stored.revision, stored.dtype)  # type: ignore[arg-type]
    return ModelEncoder(arguments, fields.given(), onnx, stored.flip_test)


def _has_language_model(model: Any) -> bool:
    """Returns whether a model of torch is the multimodal form, which reads pairs."""
    from ..model import MllmReIDModel

    return isinstance(model, MllmReIDModel)


def _folder(arguments: ModelArguments) -> Path:
    """Returns the folder of a model's files, that in the cache for a model on the Hub."""
    if os.path.isdir(arguments.model):
        return Path(arguments.model)
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(arguments.model, "config.json", revision=arguments.revision))).parent


def _blank() -> Any:
    """Returns a black crop."""
    from PIL import Image

    return Image.new("RGB", (64, 128))
