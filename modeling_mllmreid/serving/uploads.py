"""Limits of uploads: the bytes of each file while a form arrives, and the pictures that are in memory at one time."""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from PIL import Image

from ..model.images import FORMATS
from ..utils.errors import TooLarge

try:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header
except ImportError as error:
    raise ImportError("serve needs the extra `serve`: pip install 'mllmreid[serve]'") from error

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MIB = 2**20


class FileSizes:
    """Counts the bytes of each file of a form while it arrives, so that a large one is not stored first.

    Args:
        content_type (`str`): Header of the request; if it is not that of a form with files, nothing is counted.
        most (`int`): Bytes of a file, at most.
    """

    def __init__(self, content_type: str, most: int):
        self.most = most
        kind, options = parse_options_header(content_type)
        self.is_form = kind == b"multipart/form-data"
        self._size, self._header, self._value, self._name = 0, b"", b"", "a file"
        self._parser: MultipartParser | None = None
        if self.is_form and b"boundary" in options:
            callbacks: MultipartCallbacks = {
                "on_part_begin": self._part_begin,
                "on_part_data": self._part_data,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
            }
            with suppress(FormParserError):  # the application refuses it
                self._parser = MultipartParser(options[b"boundary"], callbacks)

    def add(self, content: bytes) -> None:
        """Takes the next bytes of the request. Raises TooLarge if a file has more bytes than it may."""
        if self._parser is not None:
            try:
                self._parser.write(content)
            except FormParserError:
                self._parser = None  # the application stops reading at the same byte

    def _part_begin(self) -> None:
        self._size, self._header, self._value, self._name = 0, b"", b"", "a file"

    def _header_field(self, content: bytes, start: int, end: int) -> None:
        self._header += content[start:end]

    def _header_value(self, content: bytes, start: int, end: int) -> None:
        self._value += content[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            name = parse_options_header(self._value)[1].get(b"filename", b"")
            self._name = name.decode(errors="replace")[:80] or self._name
        self._header, self._value = b"", b""

    def _part_data(self, content: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self.most:
            raise TooLarge(f"{self._name}: has more than {self.most // MIB} MiB: send a crop of one person")


class Memory:
    """Memory that many threads share. Who does not fit in waits, in the order of arrival.

    Args:
        most (`int`): Bytes that are used at one time.
    """

    def __init__(self, most: int):
        self.most, self.used = most, 0
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Holds `size` bytes within the block; more than there are count as all."""
        size = min(size, self.most)
        # Only the first one waits for the memory: a large one is not overtaken again and again.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self.used + size <= self.most)
            self.used += size
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()


def pixel_count(content: bytes) -> int:
    """Returns width times height of an image file by its header.

    It is 0 if the header cannot be read, which the decoder reports, and `sys.maxsize` for what Pillow does not open.
    """
    Image.init()
    try:
        with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return sys.maxsize
    except Exception:  # decoders raise anything at broken bytes
        return 0
