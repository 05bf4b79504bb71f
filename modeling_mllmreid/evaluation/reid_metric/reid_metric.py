"""The `evaluate` library's module of the retrieval metrics: mAP, CMC and mINP, as `evaluate_retrieval` gives them.

`evaluate` copies this file and reads its imports line by line: absolute ones, one a line.
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
        query_camera_ids, gallery_camera_ids: the same, -1 where unknown; left out, no gallery image is dropped.
        metric, ranks, ap, block_size: the options of `modeling_mllmreid.evaluate_retrieval`.
        Or, row by row with `add_batch`: features, person_ids, camera_ids, and splits, "query" or "gallery".
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


class ReidMetric(evaluate.Metric):
    """mAP, CMC and mINP, from whole arrays at once or from rows added batch by batch."""

    def _info(self) -> evaluate.MetricInfo:
        """The columns of `add_batch`. Strings come first, as any text of digits would pass for an integer."""
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
        # Not an argument, which would be refused beside a list column; without it features come as Python floats.
        info.format = "numpy"
        return info

    def compute(self, **inputs: Any) -> dict[str, float | int | None] | None:
        """The metrics of the query_features against the gallery_features, or else of the rows added before.

        None for rows in any process but the first, which has those of all.

        Raises UserError for both at once, and as `evaluate_retrieval` does.
        """
        if not inputs.keys() & {"query_features", "gallery_features"}:
            return super().compute(**inputs)
        if self.writer is not None:
            raise UserError("query_features: rows were added before: call compute() on these first, or load anew")
        return evaluate_retrieval(**inputs).to_dict()

    def _compute(
        self, features: np.ndarray, person_ids: np.ndarray, camera_ids: np.ndarray, splits: np.ndarray, **options: Any
    ) -> dict[str, float | int | None]:
        """The metrics of the added rows: features (N, D), person_ids, camera_ids and splits (N,)."""
        unknown = sorted(set(splits.tolist()) - {"query", "gallery"})
        if unknown:
            raise UserError(f"splits: unknown {unknown[0]!r}: use query or gallery")
        sides = [np.flatnonzero(splits == name) for name in ("query", "gallery")]
        columns = [column[side] for column in (features, person_ids, camera_ids) for side in sides]
        return evaluate_retrieval(*columns, **options).to_dict()
