"""Strategies for hostile texts, numbers, JSON, images and files, by mistake or by attack."""

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

# ---- texts ---------------------------------------------------------------------------------------------------------

IDS = [
    *("1", "01", "001", "1e2", "1E2", "100", "100.0", "-1", "0", "-0", "+1", "2", "12345678901234567890"),
    *(
        "99999999999999999999999",
        "99999999999999999999998",
        "²",
        "³",
        "٣",
        "１",
        "1_0",
        "10",
        "0x10",
        "16",
        "NaN",
        "nan",
    ),
    *(
        "inf",
        "null",
        "None",
        "NA",
        "N/A",
        "true",
        "True",
        "false",
        "anna",
        "Anna",
        "ANNA",
        "ben",
        "é",
        "e\u0301",
        "日本",
    ),
    *("a b", "a,b", 'a"b', "a;b", "=1+1", "1.0", "1.5", "0001_c1s1", "2024-01-01", "1/2", "ß", "ss", "\u200bx", "x"),
]
NASTY = [
    *(
        "",
        " ",
        "\t",
        "\n",
        "\r\n",
        "a\nb",
        "\0",
        "\x1b[2J",
        "\u2028",
        "\u202e",
        "\ud800",
        "\udcff",
        "\ufeff",
        "..",
        ".",
    ),
    *("/", "../x", "/etc/passwd", "~", "-", "--", "--x", "-1", "a" * 300, "é" * 200, "%s", "%(default)s", "{0}", "{}"),
    *("{{x}}", "[", "]", "*", "?", "\\", "'", '"', "`", "$HOME", "<b>", "|", "NUL", "con", "x.jpg", "x/y", "x\\y"),
]
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
ids = st.one_of(st.sampled_from(IDS), st.sampled_from(IDS), words)
texts = st.one_of(st.sampled_from(NASTY), st.sampled_from(IDS), st.text(max_size=12))

# ---- names of files and folders ------------------------------------------------------------------------------------

LITTER_FILES = ["Thumbs.db", ".DS_Store", "._1.jpg", "desktop.ini", ".hidden.jpg"]
LITTER_FOLDERS = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"]


def is_file_name(text: str) -> bool:
    """Whether Linux takes the text as a name in a folder."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return (
        0 < len(encoded) <= 255
        and not {b"/", b"\0"} & {encoded[i : i + 1] for i in range(len(encoded))}
        and (text not in (".", ".."))
    )


file_names = st.one_of(*[ids] * 6, texts, st.sampled_from(["\udce9", "\udcff\udcfe", "a\udc80"])).filter(is_file_name)

# ---- numbers and JSON ----------------------------------------------------------------------------------------------

NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 8, 16, 100, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-30, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
]
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-5, 50), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
# Names, because examples are printed.
NO_JSON = {
    **{text: text.encode() for text in ("", "null", "[]", "{}", "{", "NaN")},
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "deep and whole": b"[" * 5000 + b"]" * 5000,
    "UTF-16": "{}".encode("utf-16"),
    "mark alone": b"\xef\xbb\xbf",
}

# A change of JSON: where, by choices among what is there, and what happens there.
json_changes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), max_size=5),
        st.one_of(
            st.tuples(st.just("set"), json_values),
            st.tuples(st.just("remove"), st.none()),
            st.tuples(st.just("add"), json_values),
            st.tuples(st.just("like"), st.integers(0, 30)),
        ),
    ),
    min_size=1,
    max_size=2,
)
# A change of bytes: what, where (a share of the length), how much.
byte_changes = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "replace", "double", "drop"]),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=8),
)
json_files = st.one_of(
    st.tuples(st.just("json"), json_changes),
    st.tuples(st.just("json"), json_changes),
    st.tuples(st.just("bytes"), byte_changes),
    st.tuples(st.just("content"), st.sampled_from(sorted(NO_JSON))),
)
# What else may stand where a file is expected; what it is, is done by `put`.
NO_FILES = ["pipe", "folder", "link to nothing", "link to itself", "nothing"]
files_of_json = st.one_of(*[json_files] * 7, st.tuples(st.just("file"), st.sampled_from(NO_FILES)))


def write_changed(path: Path, content: bytes, change: tuple[str, Any]) -> None:
    """Writes a JSON file's content with a change of `json_files`, or what is no file, in the place of a link."""
    path.unlink(missing_ok=True)
    if change[0] == "file":
        put(path, change[1])
    else:
        path.write_bytes(changed_file(content, change))


def put(path: Path, what: str) -> None:
    """Puts one of NO_FILES where a file is to be."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "nothing":
        path.symlink_to(path.name if what == "link to itself" else "absent")


def changed_file(content: bytes, change: tuple[str, Any]) -> bytes:
    """A JSON file's content with a change of `json_files`; any other file is cut."""
    kind, how = change
    if kind == "content":
        return NO_JSON[how]
    if kind == "bytes":
        return changed_bytes(content, how)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # the file is no JSON, or no longer
        return changed_bytes(content, ("cut", 0.7, b""))
    return json.dumps(changed_json(value, how)).encode("utf-8", "surrogatepass")


def changed_json(value: Any, changes: list) -> Any:
    """The value after changes of `json_changes`."""
    root = [value]
    for path, (action, new) in changes:
        holder, key = root, 0
        for step in path:
            inside = holder[key]
            keys = (
                sorted(inside, key=str)
                if isinstance(inside, dict)
                else range(len(inside))
                if isinstance(inside, list)
                else ()
            )
            if not keys:
                break
            holder, key = inside, keys[step % len(keys)]
        if action == "set":
            holder[key] = new
        elif action == "like":
            holder[key] = similar(holder[key], new)
        elif action == "add" and isinstance(holder, dict):
            holder[str(new)] = new
        elif action == "add":
            holder.append(new)
        elif holder is not root:
            del holder[key]
    return root[0]


def similar(value: Any, number: int) -> Any:
    """Another value of the same type, or the same value in another type."""
    if isinstance(value, bool):
        return [not value, int(value), str(value)][number % 3]
    if isinstance(value, int | float):
        return [-value, value + 1, value * 1000, str(value), float(value), None, [value], 10**30][number % 8]
    if isinstance(value, str):
        return [f"{value} ", value.upper(), f"../{value}", f"/tmp/{value}", "", f"{value}\0", [value], value[:-1]][
            number % 8
        ]
    if isinstance(value, list):
        return [value * 2, value[:-1], value[::-1], value[:1], {"0": value}, [value], [], None][number % 8]
    return [list(value) if isinstance(value, dict) else [], {}, None, [value]][number % 4]


def changed_bytes(content: bytes, change: tuple[str, float, bytes]) -> bytes:
    """The bytes after a change of `byte_changes`."""
    kind, where, new = change
    place = min(int(where * len(content)), max(len(content) - 1, 0))
    return {
        "cut": content[:place],
        "flip": content[:place]
        + bytes(b ^ 0xFF for b in content[place : place + len(new)])
        + content[place + len(new) :],
        "insert": content[:place] + new + content[place:],
        "replace": content[:place] + new + content[place + len(new) :],
        "double": content + content,
        "drop": content[:place] + content[place + len(new) :],
    }[kind]


# ---- images --------------------------------------------------------------------------------------------------------

MODES = {
    "PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I"],
    "JPEG": ["RGB", "L", "CMYK"],
    "BMP": ["RGB", "L", "P", "1"],
    "GIF": ["RGB", "L", "P", "RGBA"],
    "WEBP": ["RGB", "RGBA"],
    "TIFF": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK", "LAB", "YCbCr"],
    "PPM": ["RGB", "L", "1"],
    "TGA": ["RGB"],
    "ICO": ["RGBA"],
    "PDF": ["RGB"],
    "EPS": ["RGB"],
    "PCX": ["RGB"],
}
SUFFIXES = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "JPG", "avif", "ppm", "eps", "txt"]
NO_IMAGES = [
    b"",
    b"not an image",
    b"%PDF-1.4\n%%EOF",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"<!DOCTYPE html><html></html>",
    b"GIF89a",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBP",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
]


def _images() -> st.SearchStrategy:
    kinds = [(form, mode) for form, modes in MODES.items() for mode in modes]
    return st.tuples(st.sampled_from(kinds), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))


# (what, the bytes' description, suffix)
images = st.tuples(
    st.one_of(
        st.tuples(st.just("whole"), _images()),
        st.tuples(st.just("changed"), _images(), byte_changes),
        st.tuples(st.just("bomb"), st.sampled_from(["PNG", "GIF", "BMP", "TIFF"]), st.integers(2**13, 2**31 - 1)),
        st.tuples(st.just("none"), st.sampled_from(NO_IMAGES)),
    ),
    st.sampled_from(SUFFIXES),
)


def image_bytes(what: tuple) -> bytes:
    """The bytes that a description of `images` stands for."""
    if what[0] == "none":
        return what[1]
    if what[0] == "bomb":
        return bomb(what[1], what[2])
    content = encoded(*what[1])
    return changed_bytes(content, what[2]) if what[0] == "changed" else content


def picture(mode: str, width: int, height: int, kind: int) -> Image.Image:
    """An image of a mode: a ramp over the mode's range."""
    count = width * height
    if mode in ("I;16", "I"):
        values = [65535 * n // max(count - 1, 1) for n in range(count)]
        if mode == "I;16":
            return Image.frombytes("I;16", (width, height), struct.pack(f"<{count}H", *values))
        return Image.frombytes("I", (width, height), struct.pack(f"<{count}i", *values))
    if mode == "F":
        top = [1.0, 255.0, 65535.0, float("nan")][kind]
        return Image.frombytes(
            "F", (width, height), struct.pack(f"<{count}f", *(top * n / max(count - 1, 1) for n in range(count)))
        )
    ramp = Image.frombytes("L", (width, height), bytes(255 * n // max(count - 1, 1) for n in range(count)))
    if mode == "LAB":
        return Image.merge("LAB", [ramp] * 3)
    return ramp.convert("RGB").convert(mode) if mode not in ("LA",) else Image.merge("LA", [ramp, ramp])


def encoded(kind: tuple[str, str], width: int, height: int, variant: int) -> bytes:
    """An image file of a format and a mode."""
    form, mode = kind
    out = io.BytesIO()
    picture(mode, width, height, variant).save(out, form)
    return out.getvalue()


def bomb(form: str, side: int) -> bytes:
    """A small file whose header says that it is `side` pixels wide and high."""
    if form == "PNG":
        content = bytearray(encoded(("PNG", "L"), 4, 4, 0))
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
        return bytes(content)
    if form == "GIF":
        content = bytearray(encoded(("GIF", "L"), 4, 4, 0))
        content[6:10] = struct.pack("<HH", side % 2**16, side % 2**16)
        return bytes(content)
    if form == "BMP":
        content = bytearray(encoded(("BMP", "L"), 4, 4, 0))
        content[18:26] = struct.pack("<ii", side, side)
        return bytes(content)
    content = bytearray(encoded(("TIFF", "L"), 4, 4, 0))
    start = struct.unpack("<I", content[4:8])[0]
    for entry in range(struct.unpack("<H", content[start : start + 2])[0]):
        at = start + 2 + 12 * entry
        if struct.unpack("<H", content[at : at + 2])[0] in (256, 257):
            content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(content)


PIXEL = encoded(("JPEG", "RGB"), 2, 2, 0)
