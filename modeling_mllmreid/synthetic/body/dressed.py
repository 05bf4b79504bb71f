"""A person ready to be posed: all layers in one mesh, and the cloth of each."""

from functools import lru_cache
from random import Random

import numpy as np

from ..people.attributes import Person
from ..people.colors import RGB
from .accessories import accessories
from .body import shape_body
from .cloth import FRONT, SIZE, noise, weave
from .garments import Cut, cut_outfit, garments
from .mesh import Layer, Part


class Dressed:
    """One mesh of all layers.

    Args:
        person (`Person`): Who it is.

    Attributes: `vertices`, `normals`, `place` (N, 3), `weights` (N, bones), `shown`, `arm` (N,), `faces` (F, 3),
    `layer` (F,); `hanging`: for "Left" and "Right" which vertices (N,) hang from this hand; `textures` by layer, see
    `cloth.weave`; `sleeves`: their texture; `bump` (SIZE, SIZE, 2): folds; `zipper`, `strap`: sRGB or None.
    """

    def __init__(self, person: Person) -> None:
        shape = shape_body(person.body.build)
        self.person, self.cut = person, cut_outfit(person.outfit)
        self.joints, self.stature = shape.joints, person.body.build.stature
        self._merge(garments(shape, person.outfit, self.cut) + accessories(shape, person, self.cut))
        self._weave(person, self.cut)

    def _merge(self, parts: list[Part]) -> None:
        """Joins the parts and drops triangles that no point of is shown."""
        starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
        faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)])
        layer = np.concatenate([np.full(len(part.faces), part.layer, np.int8) for part in parts])
        shown = np.concatenate([part.shown for part in parts])
        visible = (shown[faces] > 0).any(1)
        used, faces = np.unique(faces[visible], return_inverse=True)
        self.faces, self.layer, self.shown = faces.reshape(-1, 3).astype(np.int32), layer[visible], shown[used]
        self.vertices, self.normals, self.place, self.weights, self.arm = (
            np.concatenate([getattr(part, name) for part in parts])[used].astype(np.float32)
            for name in ("vertices", "normals", "place", "weights", "arm")
        )
        hand = np.concatenate([np.full(len(part.vertices), part.hand, "U5") for part in parts])[used]
        self.hanging = {side: hand == side for side in ("Left", "Right") if (hand == side).any()}

    def _weave(self, person: Person, cut: Cut) -> None:
        """Makes the cloth of each layer."""
        outfit, rng = person.outfit, Random(f"{person.outfit.detail}:cloth")
        second, third = outfit.pattern_color.rgb, outfit.accent_color.rgb
        upper = weave(rng, outfit.upper_color.rgb, outfit.pattern, second, third)
        if outfit.upper == "puffer":
            seams = np.abs((np.arange(SIZE) / 9) % 1 - 0.5) > 0.38
            upper[seams, :, :3] *= 0.65
        lower = weave(rng, outfit.lower_color.rgb)
        if outfit.lower == "jeans":  # worn pale in front of the thighs
            lower[..., :3] *= 1 + rng.uniform(0, 0.35) * np.exp(-(((np.arange(SIZE) - FRONT) / 20) ** 2))[None, :, None]
        elif outfit.lower == "trousers" and rng.random() < 0.15:  # a seam at the side
            lower[:, 28:36, :3] = lower[:, 92:100, :3] = third
        self.sleeves = upper
        if rng.random() < 0.15 and outfit.pattern in ("plain", "logo"):
            self.sleeves = weave(rng, third)
        self.textures = {
            Layer.UPPER: upper,
            Layer.LOWER: lower,
            Layer.INNER: weave(rng, (outfit.inner_color or outfit.upper_color).rgb),
            Layer.BAG: weave(rng, outfit.bag_color.rgb),
            Layer.HAT: weave(rng, outfit.hat_color.rgb),
            Layer.NECK: weave(rng, (outfit.scarf_color or outfit.upper_color).rgb),
        }
        for cloth in self.textures.values():
            np.clip(cloth[..., :3], 0.01, 1, out=cloth[..., :3])
        self.bump = np.stack([noise(rng, 1.2), noise(rng, 1.2)], -1)
        closed = outfit.inner_color is None and outfit.upper in ("jacket", "hoodie", "puffer", "coat", "shirt")
        self.zipper: RGB | None = third if closed and rng.random() < 0.5 else None
        self.strap: RGB | None = None
        if outfit.bag in ("backpack", "shoulder bag", "crossbody bag"):
            red, green, blue = outfit.bag_color.rgb
            self.strap = (0.8 * red, 0.8 * green, 0.8 * blue)

    @property
    def carries(self) -> str:
        """The hand that carries something: "Left", "Right" or ""."""
        return next(iter(self.hanging), "")


@lru_cache(maxsize=8)
def dress(person: Person) -> Dressed:
    """The mesh and cloth of a person; the last ones are kept: a set is rendered person by person."""
    return Dressed(person)
