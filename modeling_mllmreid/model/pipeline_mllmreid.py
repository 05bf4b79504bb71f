"""The pipeline "person-reid": embeds person crops, or ranks a gallery by its similarity to a crop.

Two entries of a checkpoint name the code by which other libraries use it: the pipeline in config.json, and the module
of sentence-transformers in modules.json.
"""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import json
import os
from typing import Any

from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .crops import as_list

# transformers types the flags below as None, and the arguments of its methods as anything.
# mypy: disable-error-code="assignment, override"

TASK = "person-reid"
TOP_K = 10
MODULES = "modules.json"


class PersonReIDPipeline(Pipeline):
    """Embeds person crops, or ranks a gallery for each crop, with a [`MllmReIDModel`] or its vision form.

    Images are those of [`MllmReIDProcessor`], such as paths and PIL images of any size.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # transformers needs a padding token for batches if there is a tokenizer, and there is no text here.
        self.tokenizer = None
        if hasattr(self.model.config, "custom_pipelines"):
            # At loading, transformers puts classes into the entry, which config.json cannot store.
            self.model.config.custom_pipelines = person_reid_entry()

    def __call__(self, inputs: Any, gallery: Any = None, top_k: int | None = None, **kwargs: Any) -> Any:
        """Embeds images, or ranks a gallery for each image.

        Args:
            inputs:
                An image or a list of images.
            gallery (*optional*):
                Images to rank. They are embedded once a call.
            top_k (`int`, *optional*, defaults to 10):
                Number of gallery images in the result.
            **kwargs:
                Options of the pipeline, such as `batch_size`.

        Returns:
            Without a gallery, an embedding: a NumPy array of shape (D,), float32, L2-normalised. With a gallery, a
            list of `{"index": index into the gallery, "score": cosine similarity}`, best first. For a list of images,
            a list of either.

        Raises:
            ValueError: for an empty gallery, for a `top_k` below 1, and for a `top_k` without a gallery.
        """
        if top_k is not None and gallery is None:
            raise ValueError("top_k is how many of a gallery are shown: give gallery=[...] too, or leave top_k out")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}: give 1 or more")
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs
        if gallery is None:
            return self._embedded(inputs, **kwargs)
        images = as_list(gallery)
        if not images:
            raise ValueError("the gallery is empty: give at least one image to rank")
        return self._ranked(self._embedded(inputs, **kwargs), self._embedded(images, **kwargs), top_k or TOP_K)

    def _embedded(self, inputs: Any, **kwargs: Any) -> Any:
        # The base class reads the first item of a list, also of an empty one.
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def _ranked(self, query: Any, gallery: list[Any], top_k: int) -> list[Any]:
        import numpy as np

        if not isinstance(query, np.ndarray):
            return [self._ranked(embedding, gallery, top_k) for embedding in query]
        scores = np.stack(gallery) @ query
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{"index": int(index), "score": float(scores[index])} for index in best]

    def _sanitize_parameters(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {}, {}

    def preprocess(self, input_: Any) -> dict[str, Any]:
        """Returns `pixel_values` of shape (1, 3, H, W) for an image."""
        return {"pixel_values": self.processor(images=[input_])["pixel_values"]}

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": self.model.encode_images(input_tensors["pixel_values"])}

    def postprocess(self, model_outputs: dict[str, Any]) -> Any:
        """Returns an image's embedding as a NumPy array of shape (D,)."""
        return model_outputs["embedding"][0].numpy()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and processor; the base class leaves the processor out."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Pushes the model and the processor; the repository is private, and the ID classifier stays here."""
        self.model.push_to_hub(repo_id, **kwargs)
        self.processor.push_to_hub(repo_id, **kwargs)


def person_reid_entry() -> dict[str, Any]:
    """Returns the `custom_pipelines` of a config.json, by which transformers finds the checkpoint's pipeline."""
    return {TASK: {"impl": f"{__name__.split('.')[-1]}.PersonReIDPipeline", "pt": ["AutoModel"], "type": "image"}}


def modules_entry() -> str:
    """Returns the `modules.json` of a checkpoint, by which sentence-transformers finds the checkpoint's module."""
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers_mllmreid.PersonEmbedder"}
    return json.dumps([module], indent=2) + "\n"


def write_modules(folder: str | os.PathLike[str]) -> None:
    """Writes `modules.json` into the folder of a checkpoint."""
    with open(os.path.join(folder, MODULES), "w", encoding="utf-8") as file:
        file.write(modules_entry())


def register_person_reid() -> None:
    """Registers the task in `transformers.pipeline`, which then runs this code instead of a checkpoint's copy."""
    PIPELINE_REGISTRY.register_pipeline(TASK, PersonReIDPipeline, pt_model=AutoModel, type="image")


def without_known_entry(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config.json without `custom_pipelines` if the task is registered.

    With the entry, transformers requires `trust_remote_code=True` to run the checkpoint's copy of the pipeline.
    """
    known = TASK in PIPELINE_REGISTRY.supported_tasks
    return {key: value for key, value in fields.items() if not (known and key == "custom_pipelines")}
