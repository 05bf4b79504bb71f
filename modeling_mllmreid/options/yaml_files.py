"""Reads a flat YAML file; scalars stay text, so that they mean the same as on the command line."""

import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import UserError

# Far above the size of any configuration; PyYAML reads about 100 kB a second.
MAX_BYTES, MAX_NODES, MAX_DEPTH = 256 * 1024, 10_000, 20
TAG = "tag:yaml.org,2002:"
PLAIN_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
# YAML 1.1 reads 1e-4 as text; YAML 1.2 and most programs read it as a number.
PLAIN_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
YES, NO, NOTHING = ("yes", "true", "on"), ("no", "false", "off"), ("", "~", "null")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads the fields of a YAML file. Anchors and merge keys work.

    Args:
        path (`Path`):
            A file of at most 256 KiB in UTF-8 with one `field: value` a line.

    Returns:
        `dict`: Values by field name. A value, or an item of a list, is None, a bool (yes and no, on and off in YAML),
        or the text in the file. Nested values have the types of JSON.

    Raises:
        UserError: names the file and the line, if a key is repeated or is not text, or if the file holds a tag, a date,
            a nested number that YAML reads in another base, or an alias of itself.
    """
    text = _read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file ({error}): fix it") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply: write one `field: value` a line") from None
    if root is None:
        return {}
    if isinstance(root, yaml.ScalarNode) and root.tag == f"{TAG}null":
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: not a list of `field: value` lines: write one field a line")
    reader = _Reader(path)
    try:
        reader.check_size(root)
    except RecursionError:
        raise UserError(f"{path}: nested too deeply: write one `field: value` a line") from None
    return {key: reader.field(value) for key, value in reader.pairs(root).items()}


def _read_text(path: Path) -> str:
    """Reads a text file. Raises UserError if it is not a regular file, is too large, or is not UTF-8."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is no regular file: give the configuration file's path")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES // 1024} KiB: give a configuration, one field a line")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the configuration file's path") from error
    except ValueError as error:  # a NUL in the path, but no UserError
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is no path ({error}): give the configuration file's path") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file in UTF-8 ({error}): save it as UTF-8") from error


class _Reader:
    """Converts YAML nodes; unlike the values of PyYAML, nodes keep their text and line."""

    def __init__(self, path: Path):
        self.path = path
        self.sizes: dict[int, tuple[int, int]] = {}

    def error(self, node: yaml.Node, text: str) -> UserError:
        """Returns an error with the file and the line of a node."""
        return UserError(f"{self.path}: line {node.start_mark.line + 1}: {text}")

    def check_size(self, node: yaml.Node, parents: tuple[int, ...] = ()) -> tuple[int, int]:
        """Counts nodes and levels with every alias expanded. Raises UserError for too many.

        Nine lines of nested aliases can expand to a billion values.
        """
        if id(node) in parents:
            raise self.error(node, "an alias stands within what it is an alias of: write it out")
        if id(node) not in self.sizes:
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in node.value for child in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            child_sizes = [self.check_size(child, (*parents, id(node))) for child in children]
            nodes, levels = 1 + sum(n for n, _ in child_sizes), 1 + max((m for _, m in child_sizes), default=0)
            if nodes > MAX_NODES or levels > MAX_DEPTH:
                raise self.error(
                    node, f"more than {MAX_NODES:,} values or {MAX_DEPTH} levels, aliases written out: write fewer"
                )
            self.sizes[id(node)] = nodes, levels
        return self.sizes[id(node)]

    def pairs(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """Returns the nodes of a mapping by key; its own keys take precedence over those merged by `<<`."""
        self.check_tag(node, "map")
        written: dict[str, yaml.Node] = {}
        merged: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise self.error(source, "<< merges mappings: give an alias of one")
                    # The first of several sources takes precedence.
                    merged = {**self.pairs(source), **merged}
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{TAG}str", f"{TAG}bool"):
                problem = (
                    f"the key {key.value!r} is no text" if isinstance(key, yaml.ScalarNode) else "a key is no text"
                )
                raise self.error(key, f"{problem}: put it in quotes")
            if key.tag == f"{TAG}bool":
                raise self.error(key, f"YAML reads the key {key.value!r} as yes or no: put it in quotes")
            if key.value in written:
                raise self.error(key, f"{key.value}: is there twice: keep one of them")
            written[key.value] = value
        return {**merged, **written}

    def field(self, node: yaml.Node) -> Any:
        """Returns the value of a field as text; the type of the field converts it later."""
        if isinstance(node, yaml.SequenceNode):
            self.check_tag(node, "seq")
            return [self.text(item) if isinstance(item, yaml.ScalarNode) else self.typed(item) for item in node.value]
        return self.text(node) if isinstance(node, yaml.ScalarNode) else self.typed(node)

    def text(self, node: yaml.ScalarNode) -> str | bool | None:
        """Returns a scalar as text, or None or a bool if YAML reads it so."""
        self.check_tag(node, "str", "int", "float", "value", "bool", "null", "timestamp", "merge")
        word = node.value.lower()
        if node.tag == f"{TAG}null" and word in NOTHING:
            return None
        if node.tag == f"{TAG}bool" and word in YES + NO:
            return word in YES
        if node.tag in (f"{TAG}null", f"{TAG}bool"):
            raise self.error(node, f"{node.value!r} is not what its tag says: leave the tag out")
        if node.tag == f"{TAG}timestamp":
            raise self.error(node, f"YAML reads {node.value!r} as a date: put it in quotes")
        # JSON, which is YAML too, escapes characters beyond 16 bits as surrogate pairs.
        return str(node.value).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

    def typed(self, node: yaml.Node) -> Any:
        """Returns a nested value with the types of JSON."""
        if isinstance(node, yaml.MappingNode):
            return {key: self.typed(value) for key, value in self.pairs(node).items()}
        if isinstance(node, yaml.SequenceNode):
            self.check_tag(node, "seq")
            return [self.typed(item) for item in node.value]
        value = self.text(node)
        if not isinstance(value, str) or node.style is not None:
            return value
        if node.tag == f"{TAG}int" and PLAIN_INT.fullmatch(value) and len(value) < 20:
            return int(value)
        if PLAIN_FLOAT.fullmatch(value) and math.isfinite(float(value)):
            return float(value)
        if node.tag in (f"{TAG}int", f"{TAG}float"):
            raise self.error(node, f"YAML reads {value!r} as another number: write it in plain digits, or in quotes")
        return value

    def check_tag(self, node: yaml.Node, *known: str) -> None:
        """Raises UserError for other tags, such as !!binary, or !!python/object, which can run code."""
        if node.tag not in [f"{TAG}{tag}" for tag in known]:
            raise self.error(node, f"the tag {node.tag.replace(TAG, '!!')} is not taken: leave it out")
