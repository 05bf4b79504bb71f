"""Moments of walking and standing: the rotation of each bone, and the vertices that follow it."""

import math
from random import Random

import numpy as np

from ..people.attributes import Gait
from .body import body_data
from .dressed import Dressed
from .mesh import unit

Pose = dict[str, np.ndarray]
ARM_AT_REST = 34  # degrees: how far MakeHuman's elbows are bent at rest
HANDS_BUSY = 0.12


def rotation(axis: str, degrees: float) -> np.ndarray:
    """The rotation (3, 3) about "x", "y" or "z"."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {"x": ((1, 0, 0), (0, c, -s), (0, s, c)), "y": ((c, 0, s), (0, 1, 0), (-s, 0, c))}
    return np.array(rows.get(axis, ((c, -s, 0), (s, c, 0), (0, 0, 1))))


def moment(rng: Random, gait: Gait, *, walks: bool, carries: str = "", phase: float | None = None) -> Pose:
    """Draws a moment of walking or standing.

    Args:
        rng (`Random`): Draws the moment and the posture.
        gait (`Gait`): How the person moves.
        walks (`bool`): Whether the person walks.
        carries (`str`): "Left" or "Right": this arm carries something and hangs still.
        phase (`float`, *optional*): The moment in the step, 0 to 1. Default: drawn.

    Returns:
        `dict[str, np.ndarray]`: The rotation of a bone by name; others do not turn.
    """
    drawn = rng.random()
    phase = drawn if phase is None else phase
    stride = rng.uniform(0.7, 1.15) if walks else rng.uniform(0, 0.12)
    twist, lean = stride * math.sin(2 * math.pi * phase), gait.lean + rng.uniform(-2, 3)
    nod = 18 if rng.random() < 0.15 else 0  # looks down
    pose = {
        "Hips": rotation("y", -6 * twist) @ rotation("x", 0.3 * lean),
        "LowerBack": rotation("x", 0.4 * lean),
        "Spine": rotation("y", 5 * twist),
        "Spine1": rotation("y", 5 * twist) @ rotation("x", 0.3 * lean),
        "Neck1": rotation("x", rng.uniform(-6, 14)),
        "Head": rotation("y", rng.uniform(-35, 35) * rng.random()) @ rotation("x", rng.uniform(-6, 12) + nod),
    }
    for side, sign in (("Left", 1), ("Right", -1)):
        moved = (phase + (0 if side == "Left" else 0.5)) % 1
        pose |= _leg(rng, gait, side, sign, moved, stride)
        pose |= _arm(rng, gait, side, sign, moved, stride, carries == side)
    return pose


def _bump(phase: float, center: float, width: float) -> float:
    """A bell on the circle of phases, 1 at its centre."""
    return math.exp(-((((phase - center + 0.5) % 1 - 0.5) / width) ** 2))


def _leg(rng: Random, gait: Gait, side: str, sign: int, phase: float, stride: float) -> Pose:
    """Hip, knee and ankle at a moment of the step; angles follow those of human walking."""
    hip = stride * (8 + 22 * math.cos(2 * math.pi * phase))
    knee = 4 + stride * (6 + 12 * _bump(phase, 0.15, 0.08) + 52 * _bump(phase, 0.73, 0.12))
    ankle = stride * (8 * _bump(phase, 0.4, 0.12) - 16 * _bump(phase, 0.62, 0.08))
    apart = sign * (gait.stance - 6 + rng.uniform(-1.5, 2))
    return {
        f"{side}UpLeg": rotation("z", apart) @ rotation("x", -hip),
        f"{side}Leg": rotation("x", knee),
        f"{side}Foot": rotation("y", sign * rng.uniform(0, 14)) @ rotation("x", -ankle),
    }


def _arm(rng: Random, gait: Gait, side: str, sign: int, phase: float, stride: float, carries: bool) -> Pose:
    """An arm that swings, hangs still, or is at a telephone, in a pocket or raised."""
    lowered = -sign * (41 + rng.uniform(-3, 3))
    swing = stride * gait.swing * math.cos(2 * math.pi * (phase + 0.5))
    elbow, turned = gait.elbow + 0.8 * max(0.0, swing) + rng.uniform(0, 8), 0.0
    action = rng.choice(("telephone", "pocket", "raised")) if rng.random() < HANDS_BUSY else "swing"
    if carries:
        swing, elbow = 0.25 * swing, 8
    elif action == "telephone":
        swing, elbow, turned = 25 + rng.uniform(-5, 10), 95 + rng.uniform(-15, 20), 30
    elif action == "pocket":
        swing, elbow, lowered, turned = -12, 38, 0.85 * lowered, 25
    elif action == "raised":
        swing, elbow, turned = 20, 125 + rng.uniform(0, 15), 10
    down = rotation("z", lowered)
    return {
        f"{side}Arm": rotation("x", -swing) @ down,
        f"{side}ForeArm": down.T @ rotation("y", -sign * turned) @ rotation("x", ARM_AT_REST - elbow) @ down,
        f"{side}Hand": down.T @ rotation("x", rng.uniform(-5, 15)) @ down,
    }


def place(dressed: Dressed, pose: Pose, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and normals (N, 3) of a dressed person in a pose, turned by `yaw` degrees, the lowest point at y = 0."""
    data = body_data()
    turn = rotation("y", yaw)
    moves = np.zeros((len(data.bones), 4, 4))
    for number, (bone, parent, joint) in enumerate(zip(data.bones, data.parents, dressed.joints, strict=True)):
        local = np.eye(4)
        if bone in pose:
            local[:3, :3], local[:3, 3] = pose[bone], joint - pose[bone] @ joint
        if parent < 0:
            moves[number, :3], moves[number, 3, 3] = turn @ local[:3], 1
        else:
            moves[number] = moves[parent] @ local
    blended = (dressed.weights @ moves[:, :3].reshape(-1, 12).astype(np.float32)).reshape(-1, 3, 4)
    vertices = np.einsum("nij,nj->ni", blended[..., :3], dressed.vertices) + blended[..., 3]
    normals = np.einsum("nij,nj->ni", blended[..., :3], dressed.normals)
    for hand, hangs in dressed.hanging.items():  # straight down from the hand
        number = data.bone(f"{hand}Hand")
        joint, move = dressed.joints[number], moves[number, :3]
        vertices[hangs] = (dressed.vertices[hangs] - joint) @ turn.T + move[:, :3] @ joint + move[:, 3]
        normals[hangs] = dressed.normals[hangs] @ turn.T
    vertices *= dressed.stature
    vertices[:, 1] -= vertices[:, 1].min()
    return vertices.astype(np.float32), unit(normals)
