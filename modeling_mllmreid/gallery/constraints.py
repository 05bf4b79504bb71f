"""What must hold in groups of one person: tracks, decisions of humans, and that nobody is at two places at once."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..utils.errors import UserError

UNKNOWN = -1
SECOND = np.timedelta64(1, "s")


@dataclass(frozen=True)
class Rules:
    """The constraints of the groups.

    Args:
        same (`Sequence[tuple[str, str]]`): pairs of ids of crops that a human decided to be one person. Pairs with a
            crop that is not in the gallery are ignored.
        different (`Sequence[tuple[str, str]]`): pairs of ids that a human decided to be two people.
        travel_time (`np.timedelta64`): crops of two cameras whose times differ by less than this are two people.
            Defaults to one second; 0 means no such rule.
        overlapping (`Sequence[tuple[int, int]]`): pairs of cameras that see the same place, without this rule.
    """

    same: Sequence[tuple[str, str]] = ()
    different: Sequence[tuple[str, str]] = ()
    travel_time: np.timedelta64 = field(default=SECOND)
    overlapping: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        if np.isnat(self.travel_time) or self.travel_time < np.timedelta64(0, "us"):
            raise UserError(f"travel_time {self.travel_time}: give a time of 0 or more")


class Constraints:
    """The constraints of N crops, by index.

    Args:
        ids (`np.ndarray`): (N,) names of the crops, for messages.
        camera_id (`np.ndarray`): (N,) int64; -1 is unknown.
        time (`np.ndarray`): (N,) datetime64; NaT is unknown.
        track_id (`np.ndarray`): (N,) int64; -1 is unknown. A track is in one camera: crops are of one track if camera
            and track are equal.
        rules (`Rules`): The rules.
    """

    def __init__(self, ids: np.ndarray, camera_id: np.ndarray, time: np.ndarray, track_id: np.ndarray, rules: Rules):
        self._ids = ids
        self._known = (camera_id != UNKNOWN) & ~np.isnat(time)
        self._cameras, self._camera = np.unique(camera_id, return_inverse=True)
        self._time = time.astype("datetime64[us]").astype(np.int64)
        self._travel = int(rules.travel_time / np.timedelta64(1, "us"))
        self._overlapping = self._camera_keys(rules.overlapping)
        place = {name: index for index, name in enumerate(ids.tolist())}
        self._same = [(place[a], place[b]) for a, b in rules.same if a in place and b in place]
        self._different: dict[int, set[int]] = defaultdict(set)
        self._decided = np.zeros(len(ids), dtype=bool)
        for one, two in ((place[a], place[b]) for a, b in rules.different if a in place and b in place):
            self._different[one].add(two)
            self._different[two].add(one)
            self._decided[[one, two]] = True
        self._track = track_id

    def start(self) -> np.ndarray:
        """Joins the crops of each track and of each decision.

        Returns:
            `np.ndarray`: (N,) int64 for each crop the index of the first crop of its group.

        Raises:
            UserError: Two crops of a group are two people; the message names them.
        """
        size = len(self._ids)
        tracked = np.flatnonzero(self._track != UNKNOWN)
        tracked = tracked[np.lexsort((tracked, self._track[tracked], self._camera[tracked]))]
        before, after = tracked[:-1], tracked[1:]
        one_track = (self._track[before] == self._track[after]) & (self._camera[before] == self._camera[after])
        joined = np.array(self._same, dtype=np.int64).reshape(-1, 2)
        rows = np.concatenate([before[one_track], joined[:, 0]])
        columns = np.concatenate([after[one_track], joined[:, 1]])
        links = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(size, size))
        group = connected_components(links, directed=False)[1] if size else np.empty(0, np.int64)
        first = np.full(group.max(initial=-1) + 1, size)
        np.minimum.at(first, group, np.arange(size))
        start: np.ndarray = first[group].astype(np.int64)
        order = np.argsort(start, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(start[order])) + 1):
            if len(members) > 1 or self._decided[members].any():
                self._check(members)
        return start

    def conflict(self, first: np.ndarray, second: np.ndarray) -> tuple[int, int] | None:
        """Returns two crops, one of each group of indices, that are two people; None if there are none."""
        return self._decided_conflict(first, second) or self._time_conflict(first, second)

    def _check(self, members: np.ndarray) -> None:
        """Raises UserError if two members are two people."""
        if pair := self._decided_conflict(members, members):
            raise UserError(
                f"crops {self._ids[min(pair)]} and {self._ids[max(pair)]}: a decision says that they are two people, "
                "but tracks or decisions join them: undo one of the decisions"
            )
        if pair := self._time_conflict(members, members):
            one, two = min(pair), max(pair)
            apart = abs(int(self._time[one]) - int(self._time[two])) / 1e6
            cameras = [int(self._cameras[self._camera[crop]]) for crop in (one, two)]
            raise UserError(
                f"crops {self._ids[one]} and {self._ids[two]}: cameras {cameras[0]} and {cameras[1]} saw them "
                f"{apart:g} seconds apart, so they are two people, but tracks or decisions join them: correct the "
                "times, undo the decision, or give the cameras as overlapping"
            )

    def _decided_conflict(self, first: np.ndarray, second: np.ndarray) -> tuple[int, int] | None:
        members = set(second.tolist()) if (decided := first[self._decided[first]]).size else set()
        found = ((one, other) for one in decided.tolist() for other in self._different[one] & members)
        return min(found, default=None)

    def _time_conflict(self, first: np.ndarray, second: np.ndarray) -> tuple[int, int] | None:
        first, second = first[self._known[first]], second[self._known[second]]
        if not (len(first) and len(second) and self._travel):
            return None
        second = second[np.argsort(self._time[second], kind="stable")]
        times = self._time[second]
        low = np.searchsorted(times, self._time[first] - self._travel, side="right")
        high = np.searchsorted(times, self._time[first] + self._travel, side="left")
        for one, start, stop in zip(first.tolist(), low.tolist(), high.tolist(), strict=True):
            near = second[start:stop]
            apart = near[self._camera[near] != self._camera[one]]
            if len(apart) and self._overlapping.size:
                apart = apart[~np.isin(self._keys(self._camera[one], self._camera[apart]), self._overlapping)]
            if len(apart):
                return one, int(apart[0])
        return None

    def _camera_keys(self, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
        """Returns a number for each pair of cameras that the gallery has."""
        number = {camera: index for index, camera in enumerate(self._cameras.tolist())}
        there = [(number[a], number[b]) for a, b in pairs if a in number and b in number]
        return np.array([int(self._keys(one, two)) for one, two in there], dtype=np.int64)

    def _keys(self, one: np.ndarray | int, two: np.ndarray | int) -> np.ndarray:
        """Returns a number for a pair of camera indices, in any order."""
        return np.minimum(one, two) * len(self._cameras) + np.maximum(one, two)
