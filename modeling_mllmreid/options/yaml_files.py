"""A flat YAML file as a mapping: scalars as they are written, so that they mean what they mean on the command line."""

import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import UserError

# Far above any configuration; PyYAML reads some 100 kB a second.
MOST_BYTES, MOST_NODES, MOST_LEVELS = 256 * 1024, 10_000, 20
TAG = "tag:yaml.org,2002:"
PLAIN_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
# YAML 1.1 takes 1e-4 for text, YAML 1.2 and everybody else for a number.
PLAIN_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
YES, NO, NOTHING = ("yes", "true", "on"), ("no", "false", "off"), ("", "~", "null")


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file by name.

    A field's value, or an item of its list, is None, a bool (YAML's yes and no, on and off), or text as it is written;
    what lies deeper is of JSON's types. Anchors and merge keys work. Raises UserError naming the file, and the line of
    what cannot be taken: a key that is there twice or is no text, a tag, a date, a number that YAML reads in another
    base, an alias of itself.
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
        reader.measure(root)
    except RecursionError:
        raise UserError(f"{path}: nested too deeply: write one `field: value` a line") from None
    return {key: reader.field(value) for key, value in reader.pairs(root).items()}


def _read_text(path: Path) -> str:
    """The file's text. Raises UserError for what is no regular file, too large, or not UTF-8."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is no regular file: give the configuration file's path")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES // 1024} KiB: give a configuration, one field a line")
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
    """Values of YAML's nodes, which keep the text and the line that PyYAML's own values lose."""

    def __init__(self, path: Path):
        self.path = path
        self.sizes: dict[int, tuple[int, int]] = {}

    def mistake(self, node: yaml.Node, what: str) -> UserError:
        return UserError(f"{self.path}: line {node.start_mark.line + 1}: {what}")

    def measure(self, node: yaml.Node, above: tuple[int, ...] = ()) -> tuple[int, int]:
        """How many nodes and levels there are once every alias is written out. Raises UserError for too many.

        Nine lines of aliases of aliases can stand for a billion values.
        """
        if id(node) in above:
            raise self.mistake(node, "an alias stands within what it is an alias of: write it out")
        if id(node) not in self.sizes:
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in node.value for child in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            of_children = [self.measure(child, (*above, id(node))) for child in children]
            nodes, levels = 1 + sum(n for n, _ in of_children), 1 + max((m for _, m in of_children), default=0)
            if nodes > MOST_NODES or levels > MOST_LEVELS:
                raise self.mistake(
                    node, f"more than {MOST_NODES:,} values or {MOST_LEVELS} levels, aliases written out: write fewer"
                )
            self.sizes[id(node)] = nodes, levels
        return self.sizes[id(node)]

    def pairs(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """Key -> node, what is merged by `<<` below what is written."""
        self.check_tag(node, "map")
        written: dict[str, yaml.Node] = {}
        merged: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise self.mistake(source, "<< merges mappings: give an alias of one")
                    # Of several the first counts.
                    merged = {**self.pairs(source), **merged}
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{TAG}str", f"{TAG}bool"):
                what = f"the key {key.value!r} is no text" if isinstance(key, yaml.ScalarNode) else "a key is no text"
                raise self.mistake(key, f"{what}: put it in quotes")
            if key.tag == f"{TAG}bool":
                raise self.mistake(key, f"YAML reads the key {key.value!r} as yes or no: put it in quotes")
            if key.value in written:
                raise self.mistake(key, f"{key.value}: is there twice: keep one of them")
            written[key.value] = value
        return {**merged, **written}

    def field(self, node: yaml.Node) -> Any:
        """A field's value: text as it is written, which the field's own type then reads."""
        if isinstance(node, yaml.SequenceNode):
            self.check_tag(node, "seq")
            return [self.text(item) if isinstance(item, yaml.ScalarNode) else self.typed(item) for item in node.value]
        return self.text(node) if isinstance(node, yaml.ScalarNode) else self.typed(node)

    def text(self, node: yaml.ScalarNode) -> str | bool | None:
        """A scalar as text, or what YAML says is nothing or yes or no."""
        self.check_tag(node, "str", "int", "float", "value", "bool", "null", "timestamp", "merge")
        word = node.value.lower()
        if node.tag == f"{TAG}null" and word in NOTHING:
            return None
        if node.tag == f"{TAG}bool" and word in YES + NO:
            return word in YES
        if node.tag in (f"{TAG}null", f"{TAG}bool"):
            raise self.mistake(node, f"{node.value!r} is not what its tag says: leave the tag out")
        if node.tag == f"{TAG}timestamp":
            raise self.mistake(node, f"YAML reads {node.value!r} as a date: put it in quotes")
        # JSON is YAML, and escapes what is beyond 16 bits as two halves.
        return str(node.value).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

    def typed(self, node: yaml.Node) -> Any:
        """A value within a field's value, of JSON's types."""
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
            raise self.mistake(node, f"YAML reads {value!r} as another number: write it in plain digits, or in quotes")
        return value

    def check_tag(self, node: yaml.Node, *known: str) -> None:
        """Raises UserError for a tag such as !!python/object, which would be code, or !!binary."""
        if node.tag not in [f"{TAG}{tag}" for tag in known]:
            raise self.mistake(node, f"the tag {node.tag.replace(TAG, '!!')} is not taken: leave it out")
