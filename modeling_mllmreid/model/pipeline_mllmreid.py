"""The pipeline "person-reid": person crops to embeddings, or a gallery ranked by how alike it is to a crop."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .crops import as_list

# transformers types the flags below as None, and its methods as taking anything.
# mypy: disable-error-code="assignment, override"


TASK = "person-reid"
TOP_K = 10


class PersonReIDPipeline(Pipeline):
    """Embeds person crops, or ranks a gallery for each of them, with a [`MllmReIDModel`] or its vision form.

    Images are paths or PIL images of any size.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # transformers looks for a padding token before it batches, and there is no text here.
        self.tokenizer = None
        if hasattr(self.model.config, "custom_pipelines"):
            # transformers put classes into the entry while it loaded, which no config.json can hold.
            self.model.config.custom_pipelines = person_reid_entry()

    def __call__(self, inputs, gallery=None, top_k=None, **kwargs):
        """The embedding of an image: (D,), numpy, float32, L2-normalised; for a list of images a list of them.

        gallery: images, embedded once a call, `batch_size` at a time; then the result is for each image a list of the
        `top_k` (default 10) best, `{"index": place in the gallery, "score": cosine similarity}`, best first.
        Raises ValueError for an empty gallery, for a `top_k` below 1, and for one without a gallery.
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

    def _embedded(self, inputs, **kwargs):
        # The base class looks at the first of a list without asking whether there is one.
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def _ranked(self, found, gallery: list, top_k: int) -> list:
        import numpy as np

        if not isinstance(found, np.ndarray):
            return [self._ranked(one, gallery, top_k) for one in found]
        scores = np.stack(gallery) @ found
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{"index": int(index), "score": float(scores[index])} for index in best]

    def _sanitize_parameters(self):
        return {}, {}, {}

    def preprocess(self, input_):
        """`pixel_values`, (1, 3, H, W), of one image."""
        return {"pixel_values": self.processor(images=[input_])["pixel_values"]}

    def _forward(self, input_tensors):
        return {"embedding": self.model.encode_images(input_tensors["pixel_values"])}

    def postprocess(self, model_outputs):
        """One image's embedding out of (1, D): (D,), numpy."""
        return model_outputs["embedding"][0].numpy()

    def save_pretrained(self, save_directory, **kwargs):
        """Model and processor; the base class would leave the processor out."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id, **kwargs):
        """The model by its own `push_to_hub`, private and without ID classifier, and the processor by its own."""
        self.model.push_to_hub(repo_id, **kwargs)
        self.processor.push_to_hub(repo_id, **kwargs)


def person_reid_entry() -> dict:
    """What `custom_pipelines` says in a config.json, so that the Hub's users get this pipeline with the checkpoint."""
    return {TASK: {"impl": f"{__name__.split('.')[-1]}.PersonReIDPipeline", "pt": ["AutoModel"], "type": "image"}}


def register_person_reid() -> None:
    """Makes the task known to `transformers.pipeline`, which then runs this code and not a checkpoint's copy."""
    PIPELINE_REGISTRY.register_pipeline(TASK, PersonReIDPipeline, pt_model=AutoModel, type="image")


def without_known_entry(fields: dict) -> dict:
    """A config.json's fields without `custom_pipelines` where the task is registered.

    With it transformers would ask for `trust_remote_code=True` to run the checkpoint's copy.
    """
    known = TASK in PIPELINE_REGISTRY.supported_tasks
    return {key: value for key, value in fields.items() if not (known and key == "custom_pipelines")}
