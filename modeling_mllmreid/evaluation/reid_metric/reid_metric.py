"""The retrieval metrics as a module of the `evaluate` library: mAP, CMC and mINP of `evaluate_retrieval`.

`evaluate` copies this file and reads its imports line by line: they are absolute, one on each line.
"""

from itertools import product
from typing import Any

import datasets
import evaluate
import numpy as np

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.utils.errors import UserError

DESCRIPTION = "Person re-identification: mAP, CMC (Rank-k) and mINP of query features against gallery features."

INPUTS = """
    Args:
        query_features, gallery_features: arrays or tensors of floats, (Q, D) and (G, D).
        query_person_ids, gallery_person_ids: (Q,) and (G,) integers or strings.
        query_camera_ids, gallery_camera_ids: the same, -1 if unknown; without them no gallery image is dropped.
        metric, ranks, ap, block_size: the options of `modeling_mllmreid.evaluate_retrieval`.
        Or, batch by batch with `add_batch`: features, person_ids, camera_ids, and splits, "query" or "gallery".
    Returns:
        mAP, rank1, ..., mINP as fractions of 1, num_queries, num_valid.
"""

CITATION = """@inproceedings{zheng2015scalable,
  title={Scalable Person Re-identification: A Benchmark},
  author={Zheng, Liang and Shen, Liyue and Tian, Lu and Wang, Shengjin and Wang, Jingdong and Tian, Qi},
  booktitle={ICCV},
  year={2015}
}
@article{ye2021deep,
  title={Deep Learning for Person Re-identification: A Survey and Outlook},
  author={Ye, Mang and Shen, Jianbing and Lin, Gaojie and Xiang, Tao and Shao, Ling and Hoi, Steven C. H.},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2021}
}"""


class ReidMetric(evaluate.Metric):  # type: ignore[misc]
    """mAP, CMC and mINP, from whole arrays or from batches of images."""

    def _info(self) -> evaluate.MetricInfo:
        """Returns the columns of `add_batch`. Strings come first, because text of digits would pass as an integer."""
        info = evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features(
                    {
                        "features": datasets.List(datasets.Value("float32")),
                        "person_ids": datasets.Value(person),
                        "camera_ids": datasets.Value(camera),
                        "splits": datasets.Value("string"),
                    }
                )
                for person, camera in product(("string", "int64"), repeat=2)
            ],
        )
        # Set here, because the argument is refused with a list column; without it features are Python floats.
        info.format = "numpy"
        return info

    def compute(self, **inputs: Any) -> dict[str, float | int | None] | None:
        """Returns the metrics of query_features against gallery_features, or of the images that were added before.

        Of added images, the first process has those of all processes; the others return None. Raises UserError for
        both kinds of input at once, and like `evaluate_retrieval`.
        """
        if not inputs.keys() & {"query_features", "gallery_features"}:
            results: dict[str, float | int | None] | None = super().compute(**inputs)
            return results
        if self.writer is not None:
            raise UserError("query_features: images were added before: call compute() first, or load the metric again")
        return evaluate_retrieval(**inputs).to_dict()

    def _compute(
        self, features: np.ndarray, person_ids: np.ndarray, camera_ids: np.ndarray, splits: np.ndarray, **options: Any
    ) -> dict[str, float | int | None]:
        """Returns the metrics of added images: features (N, D), person_ids, camera_ids and splits (N,)."""
        unknown = sorted(set(splits.tolist()) - {"query", "gallery"})
        if unknown:
            raise UserError(f"splits: unknown {unknown[0]!r}: use query or gallery")
        indices = [np.flatnonzero(splits == name) for name in ("query", "gallery")]
        columns = [column[split] for column in (features, person_ids, camera_ids) for split in indices]
        return evaluate_retrieval(*columns, **options).to_dict()
