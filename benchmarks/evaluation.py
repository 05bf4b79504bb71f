"""Measures the cost of ranking relative to its matrix product, and relative to other evaluators.

python benchmarks/evaluation.py [--sizes market msmt17 small] [--mAP 0.3 0.9] [--threads 1 2] [--repeats 2]
    [--alone] [--append RESULTS.md]

Uses synthetic 768-d features with the size, identities and cameras of the benchmark, and noise that gives the target
mAP. Runs (a) the float32 product in our blocks, (b) our product and ranking, (c) a plain NumPy argsort evaluator, and
(d) the evaluators of torchreid, open-metric-learning and pytorch-metric-learning, if they are installed. Each runs in
its own process, once with each number of CPU threads. Wall time is the fastest of the repeats, memory the peak above
the features. (a) and (b) also run on a GPU, if there is one. `--alone` leaves (c) and (d) out.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import timing
import torch

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.retrieval import distances

WIDTH = 768
# Name: (queries, gallery images, identities, cameras)
SIZES = {"market": (3368, 15913, 750, 6), "msmt17": (11659, 82161, 3060, 15), "small": (300, 3000, 100, 6)}
# Maximum number of distances for evaluators that hold the whole matrix, with 12 bytes for each distance and its order.
WHOLE_MATRIX = 2e8


def main() -> None:
    """Makes the features, runs each evaluator in its own process, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["market"], choices=SIZES)
    parser.add_argument("--mAP", type=float, nargs="+", default=[0.3, 0.9])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="leave other evaluators out")
    parser.add_argument("--append", type=Path, help="append the ratios to this table, such as RESULTS.md")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch.set_num_threads(args.threads[0])
        return work(args.worker[0], Path(args.worker[1]), torch.device(args.worker[2]), args.repeats)
    tables = {
        device: timing.Results(argparse.Namespace(append=args.append, device=device)) for device in ("cpu", "cuda")
    }
    for size in args.sizes:
        for target in args.mAP:
            with tempfile.TemporaryDirectory() as folder:
                make_problem(Path(folder), *SIZES[size], target)
                if torch.cuda.is_available():
                    compare(size, target, Path(folder), args, "cuda", 1, tables["cuda"])
                for threads in args.threads:
                    compare(size, target, Path(folder), args, "cpu", threads, tables["cpu"])
    for table in tables.values():
        table.append()


def compare(
    size: str,
    target: float,
    folder: Path,
    args: argparse.Namespace,
    device: str,
    threads: int,
    table: timing.Results,
) -> None:
    """Prints a line for each evaluator at this size and mAP, and adds our ratio to the table."""
    queries, gallery, identities, cameras = SIZES[size]
    where = "GPU" if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
    print(f"\n{size}: {queries:,} x {gallery:,}, {WIDTH}-d, {identities:,} identities, {cameras} cameras, {where}")
    print(f"{'':32} {'seconds':>8} {'/ product':>9} {'MiB above':>9} {'mAP':>8}")
    others = [] if args.alone or device == "cuda" else ["argsort", *PEERS]
    seconds: dict[str, float] = {}
    for name in ["product", "ours", *others]:
        if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
            print(f"{name:32} not installed")
            continue
        if name in others and queries * gallery > WHOLE_MATRIX:
            print(f"{name:32} not run: holds the whole matrix, {queries * gallery * 12 / 2**30:.0f} GiB with its order")
            continue
        command = [sys.executable, __file__, "--worker", name, str(folder), device, "--repeats", str(args.repeats)]
        run = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
        if run.returncode:
            print(f"{name:32} failed: {(run.stderr.splitlines() or [f'exit code {run.returncode}'])[-1]}")
            continue
        result = json.loads(run.stdout.splitlines()[-1])
        seconds[name] = result["seconds"]
        score = "" if result["mAP"] is None else f"{result['mAP']:.6f}"
        ratio = result["seconds"] / seconds.get("product", float("nan"))
        print(f"{name:32} {result['seconds']:8.3f} {ratio:9.2f} {result['mib']:9.0f} {score:>8}", flush=True)
    if {"product", "ours"} <= seconds.keys():
        limit = 4.0 if device == "cuda" else 1.25
        table.ratio(
            f"evaluation / product ({size}, mAP {target}, {where})", [seconds["ours"]], [seconds["product"]], limit
        )


def make_problem(folder: Path, queries: int, gallery: int, identities: int, cameras: int, target: float) -> None:
    """Writes features and ids whose mAP is close to the target, by bisection of the noise."""
    rng = np.random.default_rng(0)
    ids = {"qp": rng.integers(0, identities, queries), "gp": rng.integers(0, identities, gallery)}
    ids |= {"qc": rng.integers(0, cameras, queries), "gc": rng.integers(0, cameras, gallery)}
    centers = rng.standard_normal((identities, WIDTH), dtype=np.float32)
    noise = {n: rng.standard_normal((count, WIDTH), dtype=np.float32) for n, count in (("q", queries), ("g", gallery))}
    low, high = 0.0, 20.0
    for _ in range(12):
        sigma = (low + high) / 2
        g = centers[ids["gp"]] + sigma * noise["g"]
        q = centers[ids["qp"]] + sigma * noise["q"]
        first = slice(0, 200)
        score = evaluate_retrieval(q[first], g, ids["qp"][first], ids["gp"], ids["qc"][first], ids["gc"]).mAP
        low, high = (sigma, high) if score > target else (low, sigma)
    np.savez(folder / "ids.npz", **ids)
    np.save(folder / "q.npy", q)
    np.save(folder / "g.npy", g)


def work(name: str, folder: Path, device: torch.device, repeats: int) -> None:
    """Runs one evaluator and prints its time, its memory above the features and its mAP as JSON."""
    q, g = (torch.from_numpy(np.load(folder / f"{side}.npy")).to(device) for side in "qg")
    ids = [np.load(folder / "ids.npz")[key] for key in ("qp", "gp", "qc", "gc")]
    run = {"product": product_alone, "ours": ours, "argsort": argsort}.get(name) or globals()[f"{PEERS[name]}_"]
    gp, gc = ids[1][:64], ids[3][:64]
    run(g[:16], g[:64], gp[:16], gp, gc[:16] + 1000, gc)  # warms up imports and threads; every query matches itself
    before, seconds = memory(device, reset=True), []
    for _ in range(repeats):
        start = time.perf_counter()
        score = run(q, g, *ids)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(seconds), "mib": (memory(device) - before) / 2**20, "mAP": score}))


def memory(device: torch.device, reset: bool = False) -> int:
    """Returns the peak bytes since the last reset, of the GPU, or of this process as Linux counts them."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def product_alone(q, g, *ids) -> None:
    """Computes the matrix product in our blocks, the minimum cost of any evaluator."""
    block = max(distances.BLOCK_BYTES // (4 * len(g)) // distances.ROW_TILE, 1) * distances.ROW_TILE
    for start in range(0, len(q), block):
        torch.mm(q[start : start + block], g.T)


def ours(q, g, *ids) -> float:
    """Runs our product, ranking and metrics."""
    return evaluate_retrieval(q, g, *ids).mAP


def argsort(q, g, qp, gp, qc, gc) -> float:
    """Runs a plain evaluator: the whole matrix, its full order and all matches, and a loop over queries."""
    q, g = (torch.nn.functional.normalize(side).numpy() for side in (q, g))
    order = np.argsort(1 - q @ g.T, axis=1)
    matches = (gp[order] == qp[:, None]).astype(np.int32)
    scores, curves = [], []
    for row in range(len(q)):
        dropped = (gp[order[row]] == qp[row]) & (gc[order[row]] == qc[row])
        correct = matches[row][~dropped]
        if correct.any():
            hits = correct.cumsum()
            scores.append((hits / np.arange(1, len(hits) + 1) * correct).sum() / correct.sum())
            curves.append(np.minimum(hits, 1)[:10])
    return float(np.mean(scores))


def torchreid_(q, g, *ids) -> float:
    """Runs torchreid's rank.py, compiled if it is built. Loads the file alone, as the package imports far more."""
    rank = module_of("torchreid", "reid/metrics/rank.py")
    q, g = (torch.nn.functional.normalize(side) for side in (q, g))
    matrix = (1 - q @ g.T).numpy()
    return float(rank.evaluate_rank(matrix, *ids)[1])


def oml_(q, g, *ids) -> float:
    """Runs open-metric-learning's nearest neighbours and mAP over the whole gallery, with cameras as sequences."""
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics

    qp, gp, qc, gc = (torch.from_numpy(side) for side in ids)
    q, g = (torch.nn.functional.normalize(side) for side in (q, g))
    drops = {"sequence_ids_query": qp * 1000 + qc, "sequence_ids_gallery": gp * 1000 + gc}
    _, retrieved, matches = batched_knn_qg(q, g, len(g), qp, gp, **drops)
    options = {"cmc_top_k": (), "precision_top_k": (), "map_top_k": (len(g),), "reduce": True, "verbose": False}
    return float(calc_retrieval_metrics(retrieved, matches, **options)["map"][len(g)])


def pytorch_metric_learning_(q, g, qp, gp, qc, gc) -> float:
    """Runs pytorch-metric-learning's mAP over the whole gallery. It has no camera rule, so its score differs."""
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    options = {"k": len(g), "knn_func": CustomKNN(CosineSimilarity(), batch_size=256), "device": q.device}
    calculator = AccuracyCalculator(include=("mean_average_precision",), **options)
    labels = torch.from_numpy(qp), torch.from_numpy(gp)
    return float(calculator.get_accuracy(q, labels[0], g, labels[1])["mean_average_precision"])


PEERS = {
    "torchreid": "torchreid",
    "open-metric-learning": "oml",
    "pytorch-metric-learning": "pytorch_metric_learning",
}


def module_of(package: str, file: str) -> ModuleType:
    """Loads one file of an installed package as a module."""
    package_spec = importlib.util.find_spec(package)
    spec = importlib.util.spec_from_file_location("peer", Path(package_spec.origin).parent / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
