import base64
import io
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.records import spec

from fisheropt_lab.errors import LabError
from fisheropt_lab.models.vqvae import SIZES
from fisheropt_lab.spec import Trial
from fisheropt_lab.tasks import TASKS, Asked
from fisheropt_lab.tasks.image.folder import Folder
from fisheropt_lab.tasks.image.photos import DISPARITY, PHOTOS, Photos, areas
from fisheropt_lab.tasks.image.task import IMAGE, ImageSettings, ImageTask
from fisheropt_lab.training import Checkpoints, run_trial

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos():
    return Photos(32)


@pytest.fixture(scope="module")
def task(photos):
    made = ImageTask(ImageSettings("tiny", batch_size=2, loss="ce"), photos)
    made.held_out = {split: crops[::16] for split, crops in made.held_out.items()}
    return made


def test_eleven_photographs_are_in_the_wheels(photos):
    assert len(photos.photos) == len(PHOTOS) == 11
    assert sum(p.shape[0] * p.shape[1] for p in photos.photos) == 5_323_349
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in photos.photos)
    assert all(np.abs(p[..., 0].astype(int) - p[..., 2]).mean() > 1 for p in photos.photos), "in colour"


@pytest.mark.parametrize("margin", [0, DISPARITY])
def test_parts_do_not_overlap(margin):
    parts = areas(300, 451, margin)
    seen = np.zeros((300, 451), dtype=int)
    for area in parts.values():
        seen[area.top : area.bottom, area.left : area.right] += 1
    assert seen.max() == 1
    assert (seen == 0).sum() == 300 * margin
    assert parts["validation"].right - parts["validation"].left == round(0.15 * 451)


def test_crops_stay_within_their_part():
    """Photographs whose pixels say which part they belong to."""
    painted = []
    for height, width in ((90, 300), (130, 260)):
        photo = np.zeros((height, width, 3), dtype=np.uint8)
        for value, area in enumerate(areas(height, width).values(), start=1):
            photo[area.top : area.bottom, area.left : area.right] = value
        painted.append(photo)
    pictures = Photos(32, tuple(painted))
    train = pictures.draw(np.random.default_rng(0), 400)
    assert {int(v) for crop in train for v in np.unique(crop)} == {1}
    for value, split in ((2, "validation"), (3, "test")):
        crops = pictures.held_out(split, 100)
        assert {int(v) for crop in crops for v in np.unique(crop)} == {value}
        assert len(crops) == {"validation": 1 + 2, "test": 1 + 2}[split]


def test_the_second_picture_of_the_stereo_pair_does_not_train_on_what_the_first_has_held_out(photos):
    """Every strip that the first has held out is found, row for row, outside what the second trains on."""
    at = {photo.path: i for i, photo in enumerate(PHOTOS)}
    left, right = at["data/motorcycle_left.png"], at["data/motorcycle_right.png"]
    edge = photos.areas[left]["test"].left
    trained = photos.areas[right]["train"].right
    assert trained == edge - DISPARITY
    a, b = (photos.photos[i][::2].astype(np.float32).mean(-1) for i in (left, right))
    for start in range(edge, a.shape[1] - 32, 16):
        strip = a[:, start : start + 32]
        errors = [np.abs(b[:, start - d : start - d + 32] - strip).mean() for d in range(120)]
        assert int(np.argmin(errors)) <= DISPARITY - 10


def test_a_batch_is_a_function_of_seed_and_step(task, photos):
    again = ImageTask(task.settings, photos)
    seen = set()
    for seed in (0, 1):
        for step in (0, 1):
            (images,) = task.batch(seed, step)
            assert images.shape == (2, 3, 32, 32)
            assert images.dtype == torch.uint8
            assert torch.equal(images, again.batch(seed, step)[0])
            seen.add(images.numpy().tobytes())
    assert len(seen) == 4


def test_sizes_that_do_not_fit_the_photographs_are_refused():
    with pytest.raises(LabError, match=r"128 x 128 pixels do not fit.*--data"):
        Photos(128, (np.zeros((300, 451, 3), dtype=np.uint8),))


def picture(path, size, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(colour, tuple) else "L", size, colour).save(path)


def test_a_folder_in_imagenets_layout(tmp_path):
    for i in range(3):
        picture(tmp_path / f"train/n{i}/a.png", (50 + i, 40), (i, 0, 0))
        picture(tmp_path / f"val/n{i}/b.JPEG", (40, 90), (200, 0, 10 * i))
    picture(tmp_path / "val/n0/c.png", (20, 33), 77)  # grey, and smaller than a crop
    (tmp_path / "train/n0/notes.txt").write_text("no picture")
    folder = Folder(tmp_path, 32)
    assert folder.sizes == {"train": "3 pictures", "validation": "2 pictures", "test": "2 pictures"}
    assert not set(folder.paths["validation"]) & set(folder.paths["test"])
    crops = folder.draw(np.random.default_rng(0), 20)
    assert {crop.shape for crop in crops} == {(32, 32, 3)}
    assert {int(crop[0, 0, 0]) for crop in crops} == {0, 1, 2}
    assert (folder.held_out("test", 10)[0] == 77).all()
    before = folder.sha256
    picture(tmp_path / "train/n9/a.png", (50, 40), (0, 0, 0))
    assert Folder(tmp_path, 32).sha256 != before


def test_a_folder_that_is_none_says_what_is_missing(tmp_path):
    with pytest.raises(LabError, match="no folder train"):
        Folder(tmp_path, 32)
    (tmp_path / "train").mkdir()
    with pytest.raises(LabError, match="no pictures in the folders of"):
        Folder(tmp_path, 32)
    for part in ("train", "val"):
        picture(tmp_path / part / "c/a.png", (40, 40), (0, 0, 0))
    with pytest.raises(LabError, match="holds one picture"):
        Folder(tmp_path, 32)
    (tmp_path / "val/c/b.png").write_bytes(b"not a picture")
    with pytest.raises(LabError, match=r"b\.png is not a picture that Pillow can read"):
        Folder(tmp_path, 32).held_out("test", 1)


def test_what_cannot_be_is_refused():
    with pytest.raises(LabError, match="unknown loss 'l3'"):
        IMAGE.setup(Asked(set={"loss": "l3"}))
    with pytest.raises(LabError, match="there is none at nowhere"):
        IMAGE.setup(Asked(set={"inception": "nowhere"}))


@pytest.mark.parametrize("loss", ["ce", "l2+logit-laplace", "l2"])
def test_evaluation_and_metrics(task, photos, loss):
    made = ImageTask(ImageSettings("tiny", 2, loss), photos)
    made.held_out = task.held_out
    model = made.model(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = made.metrics(model, "test", CPU)
    evaluated = made.evaluate(model, "test", CPU)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "looked at, not trained"
    assert model.training
    names = {metric.name for metric in TASKS["image"].metrics}
    assert set(found) == (names if loss != "l2" else names - {"bits"})
    if loss == "ce":
        assert evaluated == pytest.approx(found["bits"] * np.log(2), rel=1e-5), "one quantity, computed twice"
    if loss == "l2":
        assert evaluated >= found["L2"] > 0  # decoding clamps to [0, 1], which can only help


def test_the_exhibit_shows_the_crops_above_the_reconstructions(task):
    (exhibit,) = task.exhibits(task.model(0), CPU)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(exhibit.content))))
    crops = task.held_out["test"]
    crops = [crops[i * len(crops) // 12] for i in range(12)] if len(crops) > 12 else crops
    assert exhibit.kind == "png"
    assert sheet.shape == (2 * 96 + 4, len(crops) * 100 - 4, 3)
    for i, crop in enumerate(crops):
        assert np.array_equal(sheet[1:96:3, 100 * i + 1 : 100 * i + 96 : 3], crop)
    assert (sheet[96:100] == 255).all()


class Interruption(KeyboardInterrupt):
    pass


def test_a_trial_that_was_interrupted_goes_on_bit_for_bit(task, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda *_: True)
    trial = Trial("fadam", lr=2e-3, seed=1)
    small = {"task": "image", "settings": asdict(task.settings), "data": task.describe_data(), "steps": 3}
    small |= {"warmup": 1, "eval_every": 3, "backend": "eager", "threads": 1}
    study = spec({"fadam": (2e-3,)}, **small)

    def stop(step, loss, lr):
        if step == 2:
            raise Interruption

    whole, model = run_trial(task, study, trial, Checkpoints(tmp_path / "whole"), lambda *_: None)
    with pytest.raises(Interruption):
        run_trial(task, study, trial, Checkpoints(tmp_path / "cut"), stop)
    resumed, again = run_trial(task, study, trial, Checkpoints(tmp_path / "cut"), lambda *_: None)
    assert resumed.resumed_at_steps == [1]
    assert resumed.train_loss == whole.train_loss
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert int(model.codebook.step) == 3


def test_the_outline_has_the_model_and_a_loss_that_can_be_differentiated():
    outline = IMAGE.outline(IMAGE.setup(Asked(size="small", batch_size=2)).settings)
    outline.loss(outline.model).backward()
    assert all(p.is_meta and p.grad is not None for p in outline.model.parameters())
    assert outline.batch == f"2 crops of {SIZES['small'].side} x {SIZES['small'].side} pixels"


def test_initial_weights_are_a_function_of_the_seed_and_only_the_last_layer_depends_on_the_loss(photos):
    first, again, other = (ImageTask(ImageSettings("tiny", 2, "ce"), photos).model(seed) for seed in (7, 7, 8))
    squared = ImageTask(ImageSettings("tiny", 2, "l2"), photos).model(7)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.patches.weight, other.patches.weight)
    assert {
        name for name in first.state_dict() if first.state_dict()[name].shape != squared.state_dict()[name].shape
    } == {
        "head.weight",
        "head.bias",
    }
