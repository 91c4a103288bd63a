"""The photographs that come with scikit-learn and scikit-image, each in three parts.

Nothing is downloaded: only files that are in the wheels are read. docs/image.md gives the credits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files

import numpy as np

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.image.pictures import Pixels, spread
from fisheropt_lab.tasks.protocol import Split

SOURCE = "11 colour photographs that come with scikit-learn and scikit-image"
HELD_OUT = 0.15  # of a photograph's width, on the right
DISPARITY = 80  # pixels: more than anything moves between the two pictures of the stereo pair


@dataclass(frozen=True)
class Photo:
    """A file in a wheel."""

    package: str
    path: str
    margin: int = 0  # columns left of the held-out part that are not trained on


PHOTOS = (
    Photo("sklearn", "datasets/images/china.jpg"),
    Photo("sklearn", "datasets/images/flower.jpg"),
    Photo("skimage", "data/astronaut.png"),
    Photo("skimage", "data/chelsea.png"),
    Photo("skimage", "data/coffee.png"),
    Photo("skimage", "data/hubble_deep_field.jpg"),
    Photo("skimage", "data/ihc.png"),
    Photo("skimage", "data/motorcycle_left.png"),
    Photo("skimage", "data/motorcycle_right.png", margin=DISPARITY),  # shows up there what the left one has held out
    Photo("skimage", "data/retina.jpg"),
    Photo("skimage", "data/rocket.jpg"),
)


@dataclass(frozen=True)
class Area:
    """A rectangle of a photograph: rows and columns from the first to before the last."""

    top: int
    bottom: int
    left: int
    right: int

    def places(self, side: int) -> tuple[int, int]:
        """How many rows and columns a crop of a side can begin at; none if it does not fit."""
        return max(0, self.bottom - self.top - side + 1), max(0, self.right - self.left - side + 1)


def areas(height: int, width: int, margin: int = 0) -> dict[str, Area]:
    """Train is on the left; on the right validation is the upper half and test the lower one."""
    edge, middle = width - round(HELD_OUT * width), height // 2
    return {
        "train": Area(0, height, 0, edge - margin),
        "validation": Area(0, middle, edge, width),
        "test": Area(middle, height, edge, width),
    }


class Photos:
    """Implements `pictures.Pictures`: crops that lie within one part of one photograph."""

    source = SOURCE
    how_split = (
        f"within each photograph: the right {HELD_OUT:.0%} of its columns are held out, their upper half for "
        f"validation and their lower half for the test; of the second picture of the stereo pair {DISPARITY} columns "
        "more are not trained on, because they show what the first has held out"
    )

    def __init__(self, side: int, photos: tuple[Pixels, ...] | None = None) -> None:
        """`side`: of a crop, pixels. `photos`: in place of the real ones, for tests."""
        self.side = side
        self.photos = _load() if photos is None else photos
        margins = [photo.margin for photo in PHOTOS] if photos is None else [0] * len(self.photos)
        self.areas = [
            areas(*photo.shape[:2], margin=margin) for photo, margin in zip(self.photos, margins, strict=True)
        ]
        if any(0 in area.places(side) for parts in self.areas for area in parts.values()):
            raise LabError(
                f"crops of {side} x {side} pixels do not fit into the held-out parts of the built-in photographs; "
                "give a folder of pictures with --data, or take size tiny or small"
            )

    @cached_property
    def sha256(self) -> str:
        """Of all pixels, with the shape and the parts of each photograph."""
        sha = hashlib.sha256()
        for photo, parts in zip(self.photos, self.areas, strict=True):
            sha.update(f"{photo.shape} {parts}".encode())
            sha.update(photo.tobytes())
        return sha.hexdigest()

    @property
    def sizes(self) -> Mapping[str, str]:
        """Megapixels."""
        pixels = {
            part: sum((a.bottom - a.top) * (a.right - a.left) for a in (parts[part] for parts in self.areas))
            for part in self.areas[0]
        }
        return {part: f"{count / 1e6:.2f} megapixels" for part, count in pixels.items()}

    def draw(self, random: np.random.Generator, count: int) -> list[Pixels]:
        """Crops at random places, every place of every photograph alike."""
        places = np.array([np.prod(parts["train"].places(self.side)) for parts in self.areas])
        chosen = random.choice(len(self.photos), size=count, p=places / places.sum())
        crops = []
        for i in chosen.tolist():
            area = self.areas[i]["train"]
            rows, columns = area.places(self.side)
            crops.append(
                self._crop(i, area.top + int(random.integers(rows)), area.left + int(random.integers(columns)))
            )
        return crops

    def held_out(self, split: Split, most: int) -> list[Pixels]:
        """Of a grid without gaps over each photograph's part."""
        grid = [
            (i, top, left)
            for i, parts in enumerate(self.areas)
            for top in range(parts[split].top, parts[split].bottom - self.side + 1, self.side)
            for left in range(parts[split].left, parts[split].right - self.side + 1, self.side)
        ]
        return [self._crop(*grid[i]) for i in spread(len(grid), most)]

    def _crop(self, photo: int, top: int, left: int) -> Pixels:
        return self.photos[photo][top : top + self.side, left : left + self.side]


def _load() -> tuple[Pixels, ...]:
    from PIL import Image  # takes a moment to import

    found = []
    for photo in PHOTOS:
        try:
            with as_file(files(photo.package) / photo.path) as path, Image.open(path) as image:
                found.append(np.asarray(image.convert("RGB")))
        except FileNotFoundError:
            raise LabError(f"this version of {photo.package} lacks {photo.path}; install another one") from None
    return tuple(found)
