"""Licences from a card, from a published name and from a configuration, but never from an architecture."""

import json

import pytest
from transformers import AutoConfig, GPT2Config

from modeling_mllmreid.data import licences
from modeling_mllmreid.data.licences import licence_in_config, licence_of, normal_licence, refuse_licences
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def base(tmp_path):
    """base(card, **config) -> a folder with these: a native LLaVA of Llama's architecture, as far as it says so."""

    def make(card=None, **config):
        fields = {"model_type": "llava", "text_config": {"model_type": "llama"}, **config}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        if card is not None:
            (tmp_path / "README.md").write_text(card, encoding="utf-8")
        return tmp_path

    return make


@pytest.fixture
def no_hub(monkeypatch):
    """No name is found, as offline."""
    monkeypatch.setattr(licences, "cached_file", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: llama2", "llama2"),
        ("license: Llama-2", "llama2"),
        ("license: apache-2.0", "apache-2.0"),
        ("license: other\nlicense_name: my-terms-1", "my-terms-1"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license: [mit, llama2]", "llama2"),
        ("license: other", None),
        ("title: none", None),
        ("license: {a: b}", None),
        ("license: 7", None),
        ("license: '[x](https://evil.example)'", None),
        ("license: [unclosed", None),
        ("- a list", None),
    ],
)
def test_licence_of_the_card(base, front, licence):
    assert licence_of(base(f"---\n{front}\n---\n# A model\n")) == licence


def test_architecture_has_no_licence(base, tmp_path):
    """SmolLM2 is Apache-2.0 and has Llama's architecture; so does a model of random weights."""
    assert licence_of(base()) is None
    assert licence_of(base("# No front matter, and the words license: llama2\n")) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert licence_of(tmp_path) is None
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert licence_of(tmp_path) is None
    assert licence_of(tmp_path / "absent") is None


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llama2"),
        ("llava-hf/llava-1.5-13b-hf", "llama2"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("llava-hf/llava-interleave-qwen-0.5b-hf", None),
        ("HuggingFaceTB/SmolLM2-135M", None),
        ("somebody/llava-1.5-7b-hf", None),
        ("meta-llama/Llama-3.2-1B", None),
    ],
)
def test_published_names_need_no_network(name, licence):
    assert licence_of(name) == licence


def test_local_copy_has_the_licence_of_its_language_model(base):
    folder = base(text_config={"model_type": "llama", "_name_or_path": "lmsys/vicuna-7b-v1.5"})
    assert licence_of(folder) == "llama2"
    # Its own card says more.
    base("---\nlicense: mit\n---\n", text_config={"_name_or_path": "lmsys/vicuna-7b-v1.5"})
    assert licence_of(folder) == "mit"


def test_own_checkpoint_keeps_the_licence_of_its_base(base, tmp_path_factory):
    card = "---\nlicense: other\nlicense_name: see-licences-that-carry-over\n---\n"
    assert licence_of(base(card, model_type="mllmreid", base_licence="apache-2.0")) == "apache-2.0"
    assert licence_of(base(card, model_type="mllmreid")) is None
    # An older thin one: its backbone's card, or name.
    backbone = tmp_path_factory.mktemp("backbone")
    (backbone / "config.json").write_text('{"model_type": "llava"}')
    (backbone / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    assert licence_of(base(card, model_type="mllmreid", backbone=str(backbone))) == "bsd-3-clause"
    folder = base(card, model_type="mllmreid", backbone="llava-hf/llava-1.5-7b-hf")
    assert licence_in_config(json.loads((folder / "config.json").read_text())) == "llama2"
    assert licence_of(base(card, model_type="mllmreid", backbone=str(folder))) is None  # it names itself


def test_normalised_licence_names():
    names = ("llama2", "LLAMA2", "Llama 2", "llama-2", "Llama 2 Community License", " Apache-2.0 ")
    assert [normal_licence(name) for name in names] == [*["llama2"] * 5, "apache-2.0"]
    assert [normal_licence(name) for name in ("", "a\nb", "x" * 200, None, 3, "<b>", "`x`")] == [None] * 7


def test_texts_of_a_restricted_licence():
    llava = AutoConfig.for_model("llava")
    texts = [{"licence": None}, {}, {"licence": 3}, {"licence": "Llama 2", "model": "m"}]
    # Nothing is claimed of texts without a recorded licence.
    refuse_licences(texts[:3], GPT2Config(), allow=False)
    refuse_licences(texts, llava, allow=False)
    refuse_licences(texts, llava, allow=False, licence="llama2")
    refuse_licences(texts, GPT2Config(), allow=True)
    with pytest.raises(UserError, match="texts written by m under the licence 'llama2' may not train another"):
        refuse_licences(texts, GPT2Config(), allow=False)
    # Llama's architecture under another licence is another language model.
    with pytest.raises(UserError, match="of the family 'llama', under the licence 'apache-2.0': use other texts"):
        refuse_licences(texts, llava, allow=False, licence="apache-2.0")
