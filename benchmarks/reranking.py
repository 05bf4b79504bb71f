"""Measures the cost of k-reciprocal re-ranking relative to the N x N product and to the dense textbook version.

python benchmarks/reranking.py [--sizes market msmt17 small] [--device cpu] [--threads 2] [--append RESULTS.md]

Uses the features of benchmarks/evaluation.py with mAP 0.5. Runs three methods, each in its own process: the N x N
float32 product in blocks, the re-ranking with its metrics, and the textbook version (whole matrices, NumPy), if its
matrices fit into memory. Prints wall time, memory above the features, and mAP. On a GPU the textbook version is left
out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing
import torch
from evaluation import SIZES, make_problem, memory

from modeling_mllmreid.evaluation.metrics import metrics_from_blocks
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.reranking import rerank_blocks

WHOLE_MATRIX = 30_000  # images; the textbook version holds about 28 bytes for each pair


def main() -> None:
    """Makes the features, runs each method in its own process, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["market"], choices=SIZES)
    timing.add_arguments(parser, 1)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch.set_num_threads(args.threads)
        return work(args.worker[0], Path(args.worker[1]), torch.device(args.device))
    table = timing.Results(args)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            compare(size, Path(folder), args, table)
    table.append()


def compare(size: str, folder: Path, args: argparse.Namespace, table: timing.Results) -> None:
    """Prints a line for each method at this size, and adds our ratio to the table."""
    queries, gallery, identities, cameras = SIZES[size]
    make_problem(folder, queries, gallery, identities, cameras, 0.5)
    print(f"\n{size}: {queries:,} + {gallery:,} images, {identities:,} identities, {cameras} cameras")
    print(f"{'':12} {'seconds':>8} {'/ product':>9} {'MiB above':>9} {'mAP':>8}")
    seconds: dict[str, float] = {}
    for name in ("product", "ours", "textbook")[: 2 if args.device == "cuda" else 3]:
        if name == "textbook" and queries + gallery > WHOLE_MATRIX:
            print(f"{name:12} not run: its matrices take {(queries + gallery) ** 2 * 28 / 2**30:.0f} GiB")
            continue
        command = [sys.executable, __file__, "--worker", name, str(folder), "--device", args.device]
        run = subprocess.run([*command, "--threads", str(args.threads)], stdout=subprocess.PIPE)
        run.check_returncode()
        result = json.loads(run.stdout.splitlines()[-1])
        seconds[name] = result["seconds"]
        score = "" if result["mAP"] is None else f"{result['mAP']:.6f}"
        print(
            f"{name:12} {result['seconds']:8.2f} {result['seconds'] / seconds['product']:9.2f} {result['mib']:9.0f} "
            f"{score:>8}",
            flush=True,
        )
    where = "GPU" if args.device == "cuda" else f"{args.threads} threads"
    table.ratio(
        f"re-ranking and metrics / product of all images ({size}, {where})", [seconds["ours"]], [seconds["product"]]
    )
    table.add(f"seconds of re-ranking and metrics ({size}, {where})", f"{seconds['ours']:.2f}")


def work(name: str, folder: Path, device: torch.device) -> None:
    """Runs one method and prints its time, its memory above the features and its mAP as JSON."""
    q, g = (torch.from_numpy(np.load(folder / f"{side}.npy")).to(device) for side in "qg")
    rule = SamePerson(*(np.load(folder / "ids.npz")[key] for key in ("qp", "gp", "qc", "gc")))
    next(iter(rerank_blocks(q[:16], g[:64])))  # warms up
    before, start = memory(device, reset=True), time.perf_counter()
    if name == "product":
        both = torch.cat([q, g])
        for row in range(0, len(both), 512):
            torch.mm(both[row : row + 512], both.T)
        score = None
    elif name == "ours":
        score = metrics_from_blocks(rerank_blocks(q, g), rule).mAP
    else:
        score = metrics_from_blocks([(slice(0, len(q)), textbook(q, g))], rule).mAP
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": (memory(device) - before) / 2**20, "mAP": score}))


def textbook(q: torch.Tensor, g: torch.Tensor, k1: int = 20, k2: int = 6, share: float = 0.3) -> np.ndarray:
    """Computes the dense version of Zhong et al. 2017 in NumPy: all distances, full order, dense weight vectors."""
    both = torch.nn.functional.normalize(torch.cat([q, g])).numpy()
    size, queries = len(both), len(q)
    d = 2 - 2 * (both @ both.T)
    d /= d.max(1, keepdims=True)
    rank = np.argsort(d, axis=1)

    def reciprocal(i: int, k: int) -> np.ndarray:
        forward = rank[i, : k + 1]
        return forward[(rank[forward, : k + 1] == i).any(1)]

    weights = np.zeros_like(d)
    for i in range(size):
        start = reciprocal(i, k1)
        grown = start
        for j in start:
            other = reciprocal(j, round(k1 / 2))
            if len(np.intersect1d(other, start)) > 2 / 3 * len(other):
                grown = np.append(grown, other)
        grown = np.unique(grown)
        values = np.exp(-d[i, grown])
        weights[i, grown] = values / values.sum()
    weights = np.stack([weights[rank[i, :k2]].mean(0) for i in range(size)])
    holders = [np.flatnonzero(weights[:, i]) for i in range(size)]
    result = np.empty((queries, size - queries), dtype=np.float32)
    for i in range(queries):
        shared = np.zeros(size, dtype=np.float32)
        for j in np.flatnonzero(weights[i]):
            shared[holders[j]] += np.minimum(weights[i, j], weights[holders[j], j])
        result[i] = (1 - share) * (1 - shared / (2 - shared))[queries:] + share * d[i, queries:]
    return result


if __name__ == "__main__":
    main()
