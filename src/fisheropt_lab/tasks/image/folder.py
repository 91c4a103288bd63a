"""A folder of pictures in ImageNet's layout: `train` and `val`, and in each a folder per class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.image.pictures import Pixels, spread
from fisheropt_lab.tasks.protocol import Split

ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Folder:
    """Implements `pictures.Pictures`. A picture's shorter side is scaled to that of a crop; then training cuts anywhere
    along the longer one and evaluation cuts out the middle. Classes play no part."""

    how_split = "as its folders say; of val, every other picture in alphabetical order is validation, the others test"

    def __init__(self, root: Path, side: int) -> None:
        """`side`: of a crop, pixels. Raises `LabError` if there are no pictures where they should be."""
        self.side = side
        self.root = root
        self.source = f"the pictures in {root.name}"
        train, held_out = (_pictures(root, part) for part in ("train", "val"))
        self.paths = {"train": train, "validation": held_out[::2], "test": held_out[1::2]}
        if not self.paths["test"]:
            raise LabError(f"{root / 'val'} holds one picture; validation and test need at least one each")

    @cached_property
    def sha256(self) -> str:
        """Of the names and sizes of the files, in order: contents would take hours to read at ImageNet's size."""
        sha = hashlib.sha256()
        for part, paths in self.paths.items():
            for path in paths:
                sha.update(f"{part} {path.relative_to(self.root).as_posix()} {path.stat().st_size}\n".encode())
        return sha.hexdigest()

    @property
    def sizes(self) -> Mapping[str, str]:
        """Numbers of pictures."""
        return {part: f"{len(paths):,} pictures" for part, paths in self.paths.items()}

    def draw(self, random: np.random.Generator, count: int) -> list[Pixels]:
        """Crops of random pictures."""
        train = self.paths["train"]
        return [self._crop(train[int(random.integers(len(train)))], float(random.random())) for _ in range(count)]

    def held_out(self, split: Split, most: int) -> list[Pixels]:
        """The middle of each picture."""
        paths = self.paths[split]
        return [self._crop(paths[i], 0.5) for i in spread(len(paths), most)]

    def _crop(self, path: Path, where: float) -> Pixels:
        """`where`: along the longer side, from 0 to 1."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise LabError(f"{path} is not a picture that Pillow can read: {error}") from None
        scale = self.side / min(image.size)
        width, height = (max(self.side, round(length * scale)) for length in image.size)
        left, top = int(where * (width - self.side)), int(where * (height - self.side))
        scaled = image.resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(scaled.crop((left, top, left + self.side, top + self.side)))


def _pictures(root: Path, part: str) -> list[Path]:
    folder = root / part
    if not folder.is_dir():
        raise LabError(f"{root} has no folder {part}; pictures are expected in train/CLASS/ and val/CLASS/")
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise LabError(f"no pictures in the folders of {folder}; known are {', '.join(sorted(ENDINGS))}")
    return found
