"""The body: its data, shapes, poses and what hangs from a hand."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from modeling_mllmreid.synthetic.body.body import DATA, body_data, shape_body, shape_shares
from modeling_mllmreid.synthetic.body.dressed import Dressed
from modeling_mllmreid.synthetic.body.mesh import Layer, solid, vertex_normals
from modeling_mllmreid.synthetic.body.poses import moment, place, rotation
from modeling_mllmreid.synthetic.people.attributes import Gait, make_person, random_stream

DIGEST = "3a613c5cba92310f6c2db488b9d5b6960737a6d3538d8af8fdcbffe1da967507"


def dressed(**outfit):
    person = make_person(0, "train", 0)
    return Dressed(replace(person, outfit=replace(person.outfit, **outfit)))


def test_the_data_is_that_of_adults_and_always_the_same():
    assert hashlib.sha256(DATA.read_bytes()).hexdigest() == DIGEST
    assert DATA.stat().st_size < 1.2e6
    assert all("-young" in name or "-old" in name for name in body_data().shapes)
    for surface in body_data().surfaces.values():
        np.testing.assert_allclose(surface.weights.sum(1), 1, atol=1e-5)


def test_shapes_are_shares_of_one_body():
    build = make_person(0, "train", 3).body.build
    shares = shape_shares(build)
    assert sum(share for name, share in shares.items() if name.startswith("universal")) == pytest.approx(1)
    assert sum(share for name, share in shares.items() if not name.startswith("universal")) == pytest.approx(1)
    waists = []
    for weight in (0.1, 0.5, 0.9):
        shape = shape_body(replace(build, weight=weight))
        skin = body_data().surfaces["body"]
        trunk = skin.ids[(skin.on_arm < 0.5) & (np.abs(skin.place[:, 1] - 1.5) < 0.5)]
        waists.append(np.ptp(shape.vertices[trunk, 2]))
    assert waists == sorted(waists) and waists[2] > 1.1 * waists[0]


def test_normals_of_a_solid_point_outwards():
    for box in (1.0, 0.5):
        part = solid(Layer.BAG, np.ones(3), np.array([1.0, 2.0, 3.0]), (1, 2, 0.5), box=box)
        outwards = part.vertices - [1, 2, 3]
        assert (np.einsum("ni,ni->n", part.normals, outwards) > 0).all()
        assert np.allclose(np.linalg.norm(vertex_normals(part.vertices, part.faces), axis=1), 1, atol=1e-4)


def test_a_pose_of_no_rotation_is_the_mesh_at_rest_on_the_ground():
    person = dressed(bag=None)
    vertices, normals = place(person, {}, 0)
    rest = person.vertices * person.stature
    np.testing.assert_allclose(vertices, rest - [0, rest[:, 1].min(), 0], atol=1e-4)
    np.testing.assert_allclose(normals, person.normals, atol=1e-3)
    turned, _ = place(person, {}, 90)
    np.testing.assert_allclose(turned[:, 0], vertices[:, 2], atol=1e-4)
    np.testing.assert_allclose(turned[:, 2], -vertices[:, 0], atol=1e-4)


def test_a_rotated_bone_moves_what_hangs_on_it_alone():
    person = dressed(bag=None)
    data = body_data()
    before, _ = place(person, {}, 0)
    after, _ = place(person, {"LeftForeArm": rotation("x", -60)}, 0)
    below = [
        data.bone(name) for name in data.bones if name.startswith(("LeftFore", "LeftHand", "LeftFinger", "LThumb"))
    ]
    share = person.weights[:, below].sum(1)
    moved = np.linalg.norm(after - before, axis=1)
    assert moved[share == 0].max() < 1e-4 < 0.5 < moved[share > 0.99].max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_handbag_hangs_straight_down_in_every_pose(side):
    person = dressed(bag="handbag", bag_side=side)
    hand = person.carries
    assert hand == side.capitalize()
    hangs = person.hanging[hand]
    for seed in range(5):
        pose = moment(random_stream(seed), Gait(3, 20, 10, 1), walks=True, carries=hand)
        vertices, _ = place(person, pose, yaw := 40 * seed)
        offset = vertices[hangs] - person.stature * person.vertices[hangs] @ rotation("y", yaw).T
        assert np.ptp(offset, axis=0).max() < 1e-3  # moved as a whole


def test_no_garment_reaches_the_ground_through_the_other_layers():
    for index in range(12):
        person = Dressed(make_person(4, "train", index))
        layers = {Layer(number) for number in np.unique(person.layer)}
        assert {Layer.SKIN, Layer.UPPER, Layer.SHOES} <= layers
        outfit = person.person.outfit
        assert (Layer.BAG in layers) == (outfit.bag is not None) and (Layer.HAT in layers) == (outfit.hat is not None)
        assert (Layer.LOWER in layers) == (outfit.lower is not None)
        assert (Layer.INNER in layers) == (outfit.inner_color is not None)
        assert (Layer.NECK in layers) == (outfit.scarf_color is not None)
