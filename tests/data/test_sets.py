"""Data sets by name: found, read, refused; nothing is downloaded unless asked for."""

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from memtools.data import NAMES, load

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = 30, 12


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def idx(array):
    """An array of bytes in the format of MNIST: magic number, sizes, values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def arrays():
    draw = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": draw.integers(0, 256, (TRAIN, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(TRAIN) % 10,
        "t10k-images-idx3-ubyte": draw.integers(0, 256, (TEST, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(TEST)[::-1] % 10,
    }


def write_idx(folder, gzipped=False, changes: dict[str, Any] | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (arrays() | (changes or {})).items():
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def stacked(part):
    return torch.stack([part[i][0] for i in range(len(part))])


def read_everything(split):
    return stacked(split.train), stacked(split.validation)


# Digits


def test_digits_come_without_files():
    split = load("digits")
    assert (len(split.train), len(split.validation)) == (1438, 359)
    assert split.input_shape == (1, 8, 8)
    assert split.class_names == tuple("0123456789")
    everything = torch.cat([stacked(split.train), stacked(split.validation)])
    assert everything.dtype == torch.float32
    assert (float(everything.min()), float(everything.max())) == (0.0, 1.0)
    assert len(everything.flatten(1).unique(dim=0)) == 1797  # no example in both parts


def test_digits_keep_image_and_label_together():
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    label_of = {
        image.tobytes(): int(y) for image, y in zip(bunch.images, bunch.target, strict=True)
    }
    split = load("digits", train_size=50, validation_size=50, seed=4)
    for part in (split.train, split.validation):
        for x, y, _ in part:
            assert label_of[(x[0] * 16).double().numpy().tobytes()] == int(y)


def test_sizes_are_drawn_by_the_seed():
    first, again, other = (load("digits", train_size=40, seed=s) for s in (0, 0, 1))
    assert len(first.train) == 40
    assert torch.equal(stacked(first.train), stacked(again.train))
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(stacked(first.train), stacked(other.train))


def test_a_smaller_draw_is_the_beginning_of_a_larger_one():
    few, more = (load("digits", train_size=n, validation_size=n) for n in (20, 30))
    assert torch.equal(stacked(more.train)[:20], stacked(few.train))
    assert torch.equal(stacked(more.validation)[:20], stacked(few.validation))


def test_examples_are_numbered_from_zero():
    split = load("digits", train_size=10, validation_size=5)
    assert [item[2] for item in split.train] == list(range(10))
    assert [item[2] for item in split.validation] == list(range(5))


@pytest.mark.parametrize("argument", ["train_size", "validation_size"])
@pytest.mark.parametrize("size", [0, -1, 1439])
def test_sizes_that_cannot_be_had_are_refused(argument, size):
    with pytest.raises(ValueError, match=rf"{argument} must lie between 1 and \d+, .* got {size}"):
        load("digits", **{argument: size})


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "memtools\[study\]"'):
        load("digits")


def test_unknown_name_gets_those_that_there_are():
    with pytest.raises(
        ValueError, match="digits, fashion-mnist, mnist, cifar10, folder, got 'svhn'"
    ):
        load("svhn")


@pytest.mark.parametrize("name", NAMES)
def test_data_dir_must_be_a_folder(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir .*nowhere is not a folder"):
        load(name, data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar10", "folder"])
def test_missing_files_are_named_and_not_downloaded(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load(name, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_are_looked_for_under_data_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"in data;.*data_dir"):
        load("mnist")
    write_idx(tmp_path / "data")
    assert len(load("mnist").train) == TRAIN


# IDX files


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
        ("mnist", "raw"),
        ("fashion-mnist", "."),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_read_where_they_lie(name, layout, gzipped, tmp_path):
    folder = write_idx(tmp_path / layout, gzipped=gzipped)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    split = load(name, data_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for part, prefix in ((split.train, "train"), (split.validation, "t10k")):
        images = arrays()[f"{prefix}-images-idx3-ubyte"]
        expected = torch.from_numpy(images)[:, None].float() / 255
        assert torch.equal(stacked(part), expected)
        assert part.targets.tolist() == arrays()[f"{prefix}-labels-idx1-ubyte"].tolist()
    assert split.input_shape == (1, 28, 28)
    assert len(split.class_names) == 10


def test_mnist_and_fashion_mnist_lie_side_by_side(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    write_idx(tmp_path / "FashionMNIST/raw", changes={"train-labels-idx1-ubyte": np.full(TRAIN, 9)})
    assert load("mnist", data_dir=tmp_path).train.targets.unique().tolist() == list(range(10))
    fashion = load("fashion-mnist", data_dir=tmp_path)
    assert fashion.train.targets.unique().tolist() == [9]
    assert fashion.class_names[9] == "Ankle boot"


def test_sizes_of_idx_parts_are_drawn_apart(tmp_path):
    split = load("mnist", data_dir=write_idx(tmp_path), train_size=20, validation_size=5)
    assert (len(split.train), len(split.validation)) == (20, 5)
    images = torch.from_numpy(arrays()["t10k-images-idx3-ubyte"]).float() / 255
    for x, y, _ in split.validation:
        position = int((images == x[0]).flatten(1).all(1).nonzero())
        assert int(y) == arrays()["t10k-labels-idx1-ubyte"][position]


def test_one_missing_idx_file_is_as_good_as_none(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"no MNIST files .* in "):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "flipped", "no deflate", "empty"])
def test_damaged_gzip_is_named(damage, tmp_path):
    path = write_idx(tmp_path, gzipped=True) / "train-images-idx3-ubyte.gz"
    packed = bytearray(path.read_bytes())
    if damage == "flipped":
        packed[100:4000] = bytes(b ^ 0x55 for b in packed[100:4000])
    path.write_bytes(
        {
            "truncated": packed[:5000],
            "no deflate": packed[:10] + b"\xff" * 99,
            "no gzip": b"<html>404</html>",
            "empty": b"",
        }.get(damage, packed)
    )
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404 not found</html>", idx(np.zeros((3, 4, 5)))[:40]]
)
def test_damaged_raw_file_is_named(content, tmp_path):
    (write_idx(tmp_path) / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte .* format of MNIST"):
        load("mnist", data_dir=tmp_path)


def test_images_and_labels_of_another_number_are_refused(tmp_path):
    write_idx(tmp_path, changes={"train-labels-idx1-ubyte": np.zeros(TRAIN - 1)})
    with pytest.raises(ValueError, match="do not belong together: 30 images, 29 labels"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason=f"Debian's dataset-fashion-mnist is not in {FASHION_MNIST}"
)
def test_real_fashion_mnist():
    split = load("fashion-mnist", data_dir=FASHION_MNIST, train_size=1000)
    assert (len(split.train), len(split.validation)) == (1000, 10_000)
    assert split.validation.targets.bincount().tolist() == [1000] * 10
    assert split.class_names[0] == "T-shirt/top"


# CIFAR-10


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_are_not_cifar10_are_never_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    exploded = tmp_path / "exploded"
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(FileNotFoundError, match="no intact CIFAR-10"):
        load("cifar10", data_dir=tmp_path)
    assert not exploded.exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert exploded.exists()  # it would have


def test_cifar10_is_channels_first_in_zero_to_one(tmp_path, monkeypatch):
    """Files in CIFAR-10's layout, whose checksums the test puts in place of the real ones."""
    import hashlib

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows[name] = draw.integers(0, 256, (4, 3072), dtype=np.uint8)
        content = {"data": rows[name], "labels": [3, 1, 4, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    kind = torchvision.datasets.CIFAR10
    for listing in ("train_list", "test_list"):
        monkeypatch.setattr(kind, listing, [[n, md5(n)] for n, _ in getattr(kind, listing)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5("batches.meta")})
    split = load("cifar10", data_dir=tmp_path)
    assert (len(split.train), len(split.validation)) == (20, 4)
    expected = torch.from_numpy(rows["test_batch"]).reshape(4, 3, 32, 32).float() / 255
    assert torch.equal(stacked(split.validation), expected)
    assert split.validation.targets.tolist() == [3, 1, 4, 1]
    assert split.class_names == tuple(names)


# Downloads


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_download_that_fails_says_what_to_do(name, tmp_path, monkeypatch):
    from urllib.error import URLError

    asked = []

    def offline(request, *args, **kwargs):
        asked.append(request)
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(FileNotFoundError, match=r"(?s)could not be downloaded .* data_dir"):
        load(name, data_dir=tmp_path / "new", download=True)
    assert asked


def test_what_is_there_is_not_downloaded_again(tmp_path):
    assert len(load("mnist", data_dir=write_idx(tmp_path), download=True).train) == TRAIN


# A folder of images

COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "eel": (0, 0, 255)}


def write_images(folder, classes=("cat", "dog", "eel"), number=5, size=(10, 6), mode="RGB"):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            image = Image.new("RGB", size, COLOURS.get(name, (9, 9, 9)))
            image.convert(mode).save(folder / name / f"{i}.png")
    return folder


def colour_of(x):
    return tuple((x.amax((1, 2)) * 255).round().int().tolist())


def test_folder_with_both_parts(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", number=2)
    split = load("folder", data_dir=tmp_path, image_size=8)
    assert (len(split.train), len(split.validation)) == (15, 6)
    assert split.input_shape == (3, 8, 8)
    assert split.class_names == ("cat", "dog", "eel")
    for part in (split.train, split.validation):
        assert part.targets.tolist() == [int(y) for _, y, _ in part]
        for i in range(len(part)):
            x, y, index = part[i]
            assert colour_of(x) == COLOURS[split.class_names[y]]
            assert index == i


@pytest.mark.parametrize("name", ["validation", "valid", "val", "test"])
def test_names_of_the_held_out_part(name, tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / name, number=1)
    split = load("folder", data_dir=tmp_path, image_size=4)
    assert (len(split.train), len(split.validation)) == (15, 3)


@pytest.mark.parametrize("under", ["", "train"])
def test_a_fifth_is_held_out_where_there_is_one_part(under, tmp_path):
    write_images(tmp_path / under)
    first, again, other = (
        load("folder", data_dir=tmp_path, image_size=4, seed=s) for s in (0, 0, 1)
    )
    assert (len(first.train), len(first.validation)) == (12, 3)
    assert first.class_names == ("cat", "dog", "eel")
    both = torch.cat([first.train.targets, first.validation.targets])
    assert both.bincount().tolist() == [5, 5, 5]
    for part in (first.train, first.validation):
        assert all(colour_of(x) == COLOURS[first.class_names[y]] for x, y, _ in part)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.targets, other.train.targets)


def test_a_class_may_be_called_train(tmp_path):
    write_images(tmp_path, classes=("car", "test", "train"))
    assert load("folder", data_dir=tmp_path).class_names == ("car", "test", "train")


def test_held_out_part_without_train_is_refused(tmp_path):
    write_images(tmp_path / "val")
    with pytest.raises(FileNotFoundError, match="holds val but no train"):
        load("folder", data_dir=tmp_path)


def test_sizes_and_drawing_keep_image_and_label_together(tmp_path):
    write_images(tmp_path)
    split = load("folder", data_dir=tmp_path, image_size=4, train_size=7, validation_size=2)
    assert (len(split.train), len(split.validation)) == (7, 2)
    assert [index for _, _, index in split.train] == list(range(7))
    assert all(colour_of(x) == COLOURS[split.class_names[y]] for x, y, _ in split.train)
    assert split.train.targets.tolist() == [y for _, y, _ in split.train]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_kinds_of_images_get_three_channels(mode, tmp_path):
    split = load("folder", data_dir=write_images(tmp_path, mode=mode), image_size=4)
    assert split.input_shape == (3, 4, 4)
    if mode == "L":
        x = split.train[0][0]
        assert torch.equal(x[0], x[1])


def test_parts_with_other_classes_are_refused(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", classes=("cat", "cow", "eel"))
    with pytest.raises(
        ValueError, match="must hold the same classes, got cat, dog, eel and cat, cow"
    ):
        load("folder", data_dir=tmp_path)


def test_class_without_images_is_refused(tmp_path):
    write_images(tmp_path)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="must hold one folder"):
        load("folder", data_dir=tmp_path)


def test_other_files_beside_the_images_are_passed_over(tmp_path):
    write_images(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no image either")
    split = load("folder", data_dir=tmp_path, image_size=4)
    assert len(split.train) + len(split.validation) == 15


def test_file_that_is_no_image_is_named_when_it_is_read(tmp_path):
    write_images(tmp_path)
    (tmp_path / "cat" / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        read_everything(load("folder", data_dir=tmp_path, image_size=4))


def test_load_leaves_no_scratch_behind(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    load("mnist", data_dir=write_idx(tmp_path / "files", gzipped=True))
    assert list(scratch.iterdir()) == []
