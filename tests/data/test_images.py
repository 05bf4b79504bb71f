"""Opening images: every broken file has its message, and no path leaves the data folder."""

import os
import re
import socket
import warnings

import numpy as np
import pytest
from PIL import Image, features

from modeling_mllmreid.data.images import check_images, list_image_tree, list_images, open_image, safe_join
from modeling_mllmreid.utils.errors import UserError


def write_jpeg(path, size=(16, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 90).convert("RGB").save(path, quality=90, **options)
    return path


def test_images_open_as_upright_rgb(tmp_path):
    for name, mode in {"a.png": "LA", "b.bmp": "RGB", "c.webp": "RGBA", "d.tiff": "L", "e.ppm": "L"}.items():
        Image.new(mode, (5, 9)).save(tmp_path / name)
        for path in (tmp_path / name, str(tmp_path / name)):
            assert (open_image(path).mode, open_image(path).size) == ("RGB", (5, 9))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert open_image(write_jpeg(tmp_path / "phone.jpg", (30, 10), exif=exif)).size == (10, 30)


GRADIENT = np.linspace(0, 65_535, 512).reshape(32, 16)


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("16.png", GRADIENT.astype(np.uint16), GRADIENT / 257),
        ("16.tif", GRADIENT.astype(np.uint16), GRADIENT / 257),
        ("16.pgm", GRADIENT.astype(np.uint16), GRADIENT / 257),
        ("32.tif", GRADIENT.astype(np.int32), GRADIENT / 257),
        ("shares.tif", (GRADIENT / 65_535).astype(np.float32), GRADIENT / 257),
        ("floats.tif", (GRADIENT / 257).astype(np.float32), GRADIENT / 257),
    ],
)
def test_wide_pixels_are_scaled_by_their_range(tmp_path, name, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / name)
    opened = np.asarray(open_image(tmp_path / name))
    assert opened.dtype == np.uint8 and (opened == opened[..., :1]).all()
    assert np.abs(opened[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("pixels", [np.array([[-1.0, 9.0]]), np.array([[0.0, 256.0]]), np.array([[np.nan, 1.0]])])
def test_wide_pixels_of_unknown_range_are_refused(tmp_path, pixels):
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(UserError, match="wide.tif: pixels of .* have no known range: save it with 8 bits a channel"):
        open_image(tmp_path / "wide.tif")
    Image.fromarray(np.array([[70_000, 1]], dtype=np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(UserError, match=r"pixels of 1 to 70000 \(mode I\)"):
        open_image(tmp_path / "wide.tif")


def test_image_formats_and_hidden_files(tmp_path):
    suffixes = ("jpg", "JPEG", "png", "bmp", "webp", "tif", "Tiff", "gif", "avif")
    for suffix in suffixes:
        # The same picture under every suffix: what it is, its bytes tell.
        write_jpeg(tmp_path / "sub" / "x.jpg").rename(tmp_path / f"1.{suffix}")
    frames = [Image.new("RGB", (4, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "2.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "2.avif")
    assert open_image(tmp_path / "2.gif").getpixel((0, 0)) == (255, 0, 0)
    assert open_image(tmp_path / "2.avif").size == (4, 8)
    for hidden in ("._1.jpg", ".ipynb_checkpoints/1.jpg", "@eaDir/1.jpg", "__MACOSX/1.jpg", ".hidden/deep/1.jpg"):
        write_jpeg(tmp_path / hidden)
    for litter in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "scan.heic"):
        (tmp_path / litter).touch()
    write_jpeg(tmp_path / "sub" / "deep" / "3.jpg")
    (tmp_path / "around").symlink_to(tmp_path)
    found = list_images(tmp_path)
    assert found.names == sorted([*(f"1.{suffix}" for suffix in suffixes), "2.gif", "2.avif"])
    assert found.left_out == ["notes.txt", "scan.heic"] and found.hidden == 8
    whole = list_image_tree(tmp_path)
    assert whole.names == sorted([*found.names, "sub/deep/3.jpg"]) and whole.left_out == found.left_out
    for image in whole.names:
        open_image(tmp_path / image)
    with pytest.raises(UserError, match="nowhere: cannot be listed"):
        list_images(tmp_path / "nowhere")


def test_pillow_without_avif_reads_other_formats(tmp_path, monkeypatch):
    monkeypatch.delitem(features.modules, "avif")
    (tmp_path / "1.jpg").write_text("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(write_jpeg(tmp_path / "2.jpg")).mode == "RGB"
        with pytest.raises(UserError, match="gif, ppm"):
            open_image(tmp_path / "1.jpg")


def test_special_files_are_not_images(tmp_path):
    """Opening a pipe or a device would never end."""
    people = tmp_path / "people"
    write_jpeg(people / "sub/1.jpg")
    (people / "link.jpg").symlink_to("sub/1.jpg")
    (people / "sub/folder.jpg").mkdir()
    (people / "folder link.jpg").symlink_to("sub")
    os.mkfifo(people / "pipe.jpg")
    (people / "device.jpg").symlink_to("/dev/zero")
    (people / "nowhere.jpg").symlink_to("absent.jpg")
    (people / "round.jpg").symlink_to("round.jpg")
    (people / "pipe link.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(people / "socket.jpg"))
    left_out = ["device.jpg", "nowhere.jpg", "pipe link.jpg", "pipe.jpg", "round.jpg", "socket.jpg"]
    assert list_images(people) == (["link.jpg"], left_out, 0)
    assert list_image_tree(people) == (["link.jpg", "sub/1.jpg"], left_out, 0)


def test_files_that_are_not_images_are_counted_and_named(tmp_path, caplog):
    for number in range(7):
        (tmp_path / f"{number}.heic").touch()
    list_images(tmp_path).warn(tmp_path)
    assert "7 files are not images and left out: 0.heic, 1.heic, 2.heic, 3.heic, 4.heic, ..." in caplog.text


def broken_images(folder):
    whole = write_jpeg(folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").touch()
    (folder / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.effect_noise((40, 40), 90).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:600])
    return {
        "missing.jpg": "no such image",
        "truncated.jpg": "broken image",
        "text.jpg": "not an image",
        "empty.jpg": "not an image",
        "script.jpg": "not an image",
        "cut.png": "broken image",
    }


def test_each_broken_file_is_named_in_one_line(tmp_path):
    for name, words in broken_images(tmp_path).items():
        with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / name))}: {words}") as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "big.jpg", (100, 200))
    with pytest.raises(UserError, match=r"big.jpg: too large an image \(100 x 200 pixels, more than 19999\)"):
        open_image(path, max_pixels=19_999)
    assert open_image(path, max_pixels=20_000).size == (100, 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)  # Pillow warns
    with pytest.raises(UserError, match="big.jpg: too large an image"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # Pillow refuses
    with pytest.raises(UserError, match="big.jpg: too large an image"):
        open_image(path)


def test_all_broken_images_are_reported_together(tmp_path):
    names = list(broken_images(tmp_path))
    good = [write_jpeg(tmp_path / f"{i}.jpg") for i in range(20)]
    check_images(good, threads=3)
    with pytest.raises(UserError, match="^6 of 26 images cannot be used: ") as caught:
        check_images([*good[:10], *(tmp_path / name for name in names), *good[10:]], shown=2)
    text = str(caught.value)
    assert "missing.jpg: no such" in text and "truncated.jpg: broken" in text and text.endswith("; and 4 more")
    assert "text.jpg" not in text and "\n" not in text


def test_paths_cannot_leave_the_data_folder(tmp_path):
    root = tmp_path / "data"
    write_jpeg(root / "a" / "b.jpg")
    outside = write_jpeg(tmp_path / "outside" / "c.jpg")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "inner").symlink_to(root / "a")
    (tmp_path / "alias").symlink_to(root)
    assert safe_join(root, "a//./b.jpg") == root / "a" / "b.jpg"
    assert safe_join(root, "inner/b.jpg").is_file() and safe_join(tmp_path / "alias", "a/b.jpg").is_file()
    assert safe_join(root, "a..b/...jpg")
    for wrong in (str(outside), "../outside/c.jpg", "a/../../outside/c.jpg", "a/../a/b.jpg", "", ".", "a\0b"):
        with pytest.raises(UserError, match="is not inside the data folder .*: give a path relative"):
            safe_join(root, wrong)
    with pytest.raises(UserError, match="'link/c.jpg' leaves the data folder .* by a symbolic link"):
        safe_join(root, "link/c.jpg")


@pytest.mark.parametrize("orientation", [1, 6])
def test_small_and_large_files_have_the_same_pixels_and_errors(tmp_path, monkeypatch, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, cut = write_jpeg(tmp_path / "a.jpg", (60, 90), exif=exif), tmp_path / "cut.jpg"
    cut.write_bytes(path.read_bytes()[:-900])
    results = []
    # At once, and by Pillow in pieces.
    for small in (2**20, 0):
        monkeypatch.setattr("modeling_mllmreid.model.images.SMALL_FILE", small)
        with pytest.raises(UserError, match=r"cut.jpg: broken image \(image file is truncated") as error:
            open_image(cut)
        results.append((np.asarray(open_image(path)), re.sub(r"\d+ bytes", "", str(error.value))))
    assert np.array_equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert results[0][0].shape == ((90, 60, 3) if orientation == 1 else (60, 90, 3))
