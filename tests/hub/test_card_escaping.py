"""Text of foreign files on a card is shown, and changes neither the page nor its metadata."""

import copy
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from modeling_mllmreid.hub.card import CardData, licence_notice, render_card
from modeling_mllmreid.hub.training_settings import draw_loss_curves
from modeling_mllmreid.utils.markdown import code, escape, in_python_string

HOSTILE = [
    "[x](https://evil.example) ![i](https://evil.example/i.png)",
    "<img src=x onerror=alert(1)><script>alert(1)</script> &amp; <https://evil.example>",
    "a | b | c",
    "a\n\n---\nlicense: mit\n---\n# Heading\n\n- item\n\n```\ncode\n```\n",
    "```\nfence",
    "`code` ``double`` *emphasis* **strong** __strong__ ~~gone~~ _emphasis_",
    'x", trust_remote_code=False); import os; os.system("evil") #',
    "https://evil.example www.evil.example evil@evil.example",
    "{{ 7 * 7 }} {% raw %}",
    "\\",
    "\\`",
    "'\"",
    "- item",
    "1. item",
    "\ttabbed\r\nsecond line",
    "right\u202eleft\u200b\u2028line\x00\x1b[31m\x85",
    "\ud800",
    "$\\frac{$",
    ": {a: [b, *c]} &anchor !tag # comment",
    "x" * 400,
]
PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
ROW = {"mAP": 0.5, "rank1": 0.6, "rank5": None, "rank10": 0.8, "mINP": 0.2, "num_queries": 4, "num_valid": 4}
# What the card reads as a kind of its own; the files' formats refuse others (tests/hub/test_card_files.py).
FIXED = {"base_licence", "model_type", "reid_on", "weights", "weights_sha", "form"}


def metadata(form: str = "full") -> CardData:
    """Facts with a text in every place that takes one."""
    config: dict[str, Any] = {
        "model_type": "mllmreid", "height": 64, "width": 32, "test_feature": "word", "trained_on": ["word", "word:all"],
        "overlap": ["word"], "base_licence": "word", "backbone": "word", "backbone_revision": "word",
        "loss_lambda": 0.7, "reid_on": "both", "id_weight": 1.0, "label_smoothing": 0.1, "triplet_weight": 1.0,
        "triplet_margin": 0.3, "mllm_config": {"_name_or_path": "word", "vision_config": {"model_type": "word"}},
    }  # fmt: skip
    metrics = {
        "weights": "cafe", "tested_on": ["word"], "overlap": [], "query_images": 4, "gallery_images": 8, "height": 64,
        "width": 32, "dtype": "word", "exclude": ["word"], "test_feature": "word", "metrics": {"word": ROW},
        "intervals": {"word": {"mAP": {"low": 0.4, "high": 0.6, "confidence": 0.95}}},
    }  # fmt: skip
    run = {
        "weights": "cafe", "base_model": "word", "data": {"word": {"images": 4, "persons": 2}}, "sources": ["word"],
        "texts": [{"model": "word", "licence": "word", "prompts": "word"}, {"model": "word", "licence": "word"}],
        "adapters": {"language_model": "lora", "tower": "full", "lora_rank": "word", "lora_alpha": "word",
                     "lora_dropout": "word", "lora_targets": "word", "quantize": "word"},
        "batches": {"instruction": "word", "target": "word", "text_branch": True, "val_identities": "word",
                    "flip": "word", "pad": "word", "color_jitter": "word"},
        "hardware": "word", "environment": {"word": "word"}, "seconds": 4321.0, "command": "word",
    }  # fmt: skip
    arguments = {"lr_scheduler_type": "word", "warmup_steps": 2, "optim": "word", "learning_rates": {"word": 0.1}}
    log = [{"step": step, "loss": 1.0, "word": 2.0} for step in (1, 2)]
    sha = {"weights_sha": "cafe", "parameters": 5, "has_loss_picture": True}
    return CardData(form, "word", config, metrics, arguments, log, run, **sha)


def replaced(value: Any, text: str, only: int | None, seen: list[int]) -> Any:
    """The value with every text "word" replaced, keys too, or the text of one number alone; seen counts them."""

    def of(word: str) -> str:
        seen[0] += 1
        return text if only is None or seen[0] - 1 == only else word

    if isinstance(value, dict):
        return {
            (of(key) if key == "word" else key): item if key in FIXED else replaced(item, text, only, seen)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [replaced(item, text, only, seen) for item in value]
    return of(value) if isinstance(value, str) and value in ("word", "word:all") else value


def spoiled(text: str, only: int | None = None, form: str = "full") -> tuple[CardData, int]:
    """The facts with a hostile text in every place, or in one; and the number of places."""
    seen = [0]
    harmless = metadata(form)
    fields = {
        name: item if name in FIXED else replaced(item, text, only, seen)
        for name, item in copy.deepcopy(vars(harmless)).items()
    }
    return CardData(**fields), seen[0]


def page(card: str) -> tuple[list[tuple[str, str]], list[str]]:
    """What the page is made of, every block and every span without its text; and the addresses in it."""
    tokens = [token for block in PARSER.parse(ModelCard(card).text) for token in (block, *(block.children or ()))]
    shown = [(token.type, token.tag) for token in tokens if token.type not in ("text", "softbreak", "text_special")]
    return shown, [str(value) for token in tokens for key, value in token.attrs.items() if key in ("href", "src")]


@pytest.mark.parametrize(
    ("form", "texts"), [("full", HOSTILE), ("thin", ["".join(HOSTILE)]), ("vision", ["".join(HOSTILE)])]
)
def test_no_foreign_text_changes_the_page(form, texts):
    # What stands before a colon is the set's name in the configuration.
    plain = {colon: page(render_card(spoiled(f"ano{colon}ther", form=form)[0])) for colon in ("", ":")}
    for text in texts:
        card = render_card(spoiled(text, form=form)[0])
        assert page(card) == plain[":" if ":" in text else ""], text
        assert ModelCard(card).data.license == "other", text
        (snippet,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
        calls = compile(snippet, "card", "exec").co_names
        assert "os" not in calls and "system" not in calls and snippet.count("\n") == 9, text
        # GitHub and the Hub make a link of a bare address, too; in a code span and in code they do not.
        prose = re.sub(r"```.*?\n```|(?<!\\)`[^`\n]*`", "", ModelCard(card).text, flags=re.DOTALL)
        assert not re.search(r"://evil|www\.evil|@evil", prose), text
        card.encode("utf-8")


def test_a_hostile_text_in_one_place_alone():
    text = HOSTILE[3] + HOSTILE[0] + HOSTILE[1]
    _, places = spoiled(text)
    assert places >= 36
    known = set(page(render_card(metadata()))[0])
    for place in range(places):
        card = render_card(spoiled(text, place)[0])
        shown, addresses = page(card)
        assert set(shown) <= known and "evil" not in " ".join(addresses), place
        assert ModelCard(card).data.license == "other", place


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "1. item"])
def test_a_licence_that_is_none(text):
    spoiled_facts = metadata()
    spoiled_facts.config["base_licence"] = text
    card = render_card(spoiled_facts)
    assert "The licence of the base model is not recorded" in card and text not in card
    assert ModelCard(card).data.license == "other" and licence_notice(spoiled_facts.config) is None


def test_escape_functions():
    for text in HOSTILE:
        assert "\n" not in escape(text) and "\n" not in code(text)
        assert escape(escape(text)) == escape(text)
        (inline,) = (block.children for block in PARSER.parse(f"a {code(text)} b") if block.children)
        assert [token.type for token in inline] == ["text", "code_inline", "text"], text
        literal = eval(f'"{in_python_string(text)}"')
        assert literal == text.encode("utf-8", "replace").decode()
    assert escape("cuhk_pedes, 12.5 %") == "cuhk_pedes, 12.5 %"


def test_loss_names_in_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    log = [{"step": 1, "loss": 1.0, **dict.fromkeys(HOSTILE, 0.5), "_hidden": 1.0}]
    draw_loss_curves(tmp_path / "loss.png", log)
    assert (tmp_path / "loss.png").is_file()
