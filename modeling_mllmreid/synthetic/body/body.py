"""The body: MakeHuman's mesh and skeleton, shaped by gender, age, muscle, weight and ancestry.

Units are decimetres. At rest y points up, the person faces +z and their left hand is at +x. The data is public domain
(CC0), see `data/NOTICE.md`.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..people.attributes import Build
from .mesh import vertex_normals

DATA = Path(__file__).parent / "data" / "body.npz"
STEP = 0.005  # decimetres: the unit of the shapes
ARM_BONES = ("Arm", "ForeArm", "Hand", "FingerBase", "HandFinger1")
LEG_BONES = ("UpLeg", "Leg", "Foot", "ToeBase")
# Places on the mesh at rest.
SHOULDER, ELBOW, WRIST = np.array([1.7, 5.0, 0.2]), np.array([3.3, 3.2, 0.2]), np.array([4.5, 2.0, 1.8])
CROTCH, ANKLE = -0.6, -7.5


@dataclass(frozen=True)
class Surface:
    """One surface of M vertices at rest.

    `ids` (M,): the vertices' numbers in the whole mesh; `faces` (F, 3): numbers among them; `place` (M, 3); `weights`
    (M, bones). For each vertex (M,): `on_arm`, `on_leg` and `on_head`, 0 to 1; `down_arm`: 0 at the shoulder, 1 at the
    wrist; `down_leg`: 0 at the crotch, 1 at the ankle.
    """

    ids: np.ndarray
    faces: np.ndarray
    place: np.ndarray
    weights: np.ndarray
    on_arm: np.ndarray
    on_leg: np.ndarray
    on_head: np.ndarray
    down_arm: np.ndarray
    down_leg: np.ndarray


@dataclass(frozen=True)
class BodyData:
    """The mesh at rest.

    `vertices` (N, 3); `parents` (bones,), `joints` (bones, 3): where each bone begins; `shapes` and `joint_shapes`: the
    offsets of each shape by name; `surfaces`: "body", "tights", "skirt" and "hair".
    """

    vertices: np.ndarray
    bones: tuple[str, ...]
    parents: tuple[int, ...]
    joints: np.ndarray
    shapes: dict[str, np.ndarray]
    joint_shapes: dict[str, np.ndarray]
    surfaces: dict[str, Surface]

    def bone(self, name: str) -> int:
        """The number of a bone."""
        return self.bones.index(name)

    def only(self, name: str) -> np.ndarray:
        """The weights (bones,) of something that moves with one bone."""
        result: np.ndarray = np.eye(len(self.bones), dtype=np.float32)[self.bone(name)]
        return result


@lru_cache(maxsize=1)
def body_data() -> BodyData:
    """Loads the mesh."""
    with np.load(DATA) as file:
        data = dict(file)
    bones = tuple(str(bone) for bone in data["bones"])
    weights = data["weights"].astype(np.float32)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-6)
    vertices = data["vertices"]
    names = [str(name) for name in data["shape_names"]]
    both = ("Left", "Right")

    def share(*moved: str) -> np.ndarray:
        result: np.ndarray = weights[:, [bones.index(bone) for bone in moved]].sum(1)
        return result

    of_vertices = (
        vertices,
        weights,
        share(*(side + bone for side in both for bone in ARM_BONES), "LThumb", "RThumb"),
        share(*(side + bone for side in both for bone in LEG_BONES)),
        share("Head", "Neck1"),
        down_arm(vertices),
        ((CROTCH - vertices[:, 1]) / (CROTCH - ANKLE)).astype(np.float32),
    )
    surfaces = {}
    for name in ("body", "tights", "skirt", "hair"):
        ids, faces = np.unique(data[f"faces_{name}"], return_inverse=True)
        surfaces[name] = Surface(ids, faces.reshape(-1, 3).astype(np.int32), *(values[ids] for values in of_vertices))
    return BodyData(
        vertices=vertices,
        bones=bones,
        parents=tuple(int(parent) for parent in data["parents"]),
        joints=data["joints"],
        shapes=dict(zip(names, data["shapes"], strict=True)),
        joint_shapes=dict(zip(names, data["joint_shapes"] / STEP, strict=True)),
        surfaces=surfaces,
    )


def down_arm(places: np.ndarray) -> np.ndarray:
    """How far down the arm places at rest (N, 3) are: 0 at the shoulder, 1 at the wrist."""
    points = np.array(places, float)
    points[:, 0] = np.abs(points[:, 0])
    upper, fore = ELBOW - SHOULDER, WRIST - ELBOW
    upper_length, fore_length = np.linalg.norm(upper), np.linalg.norm(fore)
    first = (points - SHOULDER) @ upper / upper_length
    second = (points - ELBOW) @ fore / fore_length
    beyond = first >= 0.98 * upper_length
    length = np.where(beyond, upper_length + np.maximum(second, 0), np.minimum(first, upper_length))
    result: np.ndarray = (length / (upper_length + fore_length)).astype(np.float32)
    return result


@dataclass(frozen=True)
class Shape:
    """The body of one person at rest: `vertices` and `normals` (N, 3), `joints` (bones, 3)."""

    vertices: np.ndarray
    normals: np.ndarray
    joints: np.ndarray


def shape_body(build: Build) -> Shape:
    """The mesh and joints of a build."""
    data = body_data()
    vertices, joints = np.zeros(data.vertices.shape, np.float32), np.zeros(data.joints.shape, np.float32)
    for name, share in shape_shares(build).items():
        if share > 1e-3:
            vertices += np.float32(share) * data.shapes[name]
            joints += np.float32(share) * data.joint_shapes[name]
    step = np.float32(STEP)
    vertices, joints = data.vertices + step * vertices, data.joints + step * joints
    normals = np.zeros_like(vertices)
    for surface in data.surfaces.values():
        normals[surface.ids] = vertex_normals(vertices[surface.ids], surface.faces)
    return Shape(vertices, normals, joints)


def shape_shares(build: Build) -> dict[str, float]:
    """The share of each of MakeHuman's shapes in a build."""
    shares = {}
    for gender, g in (("male", build.male), ("female", 1 - build.male)):
        for age, a in (("young", 1 - build.age), ("old", build.age)):
            for muscle, m in levels(build.muscle).items():
                for weight, w in levels(build.weight).items():
                    shares[f"universal-{gender}-{age}-{muscle}muscle-{weight}weight"] = g * a * m * w
            for ancestry, r in zip(("african", "asian", "caucasian"), build.ancestry, strict=True):
                shares[f"{ancestry}-{gender}-{age}"] = g * a * r
    return shares


def levels(value: float) -> dict[str, float]:
    """The shares of MakeHuman's three levels at a value from 0 to 1."""
    return {"min": max(0.0, 1 - 2 * value), "average": 1 - abs(2 * value - 1), "max": max(0.0, 2 * value - 1)}
