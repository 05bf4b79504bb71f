"""Opening images: every way a file can be wrong has its message, and no path leaves the data folder."""

import re

import pytest
from PIL import Image

from modeling_mllmreid.data.images import check_images, open_image, safe_join
from modeling_mllmreid.errors import UserError


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


def test_no_path_leaves_the_data_folder(tmp_path):
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
