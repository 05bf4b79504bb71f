"""Loading runs no foreign code and no pickle, and any wrong config.json gives one line."""

import ast
import json
import shutil
from pathlib import Path

import pytest

import modeling_mllmreid
from modeling_mllmreid.commands import caption, continuations, embed, evaluate, export, push, search, train
from modeling_mllmreid.utils.errors import UserError

PACKAGE = Path(modeling_mllmreid.__file__).parent
# ---- how our own code loads ------------------------------------------------------------------------------------------

UNPICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unsafe_loads(source: str) -> list[str]:
    """Returns the lines of a source that load without `trust_remote_code=False`, or other files than safetensors."""
    tree, wrong = ast.parse(source), []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {id(call.func) for call in calls}
    passed = {
        id(argument) for call in calls if ast.unparse(call.func).endswith("load_whole") for argument in call.args[:1]
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(name.name for name in node.names)]
            safe = not UNPICKLES & {name.partition(".")[0] for name in names}
        elif isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and id(node) not in called:
            safe = id(node) in passed  # `load_whole` loads it
        elif isinstance(node, ast.Call):
            safe = is_safe(node)
        else:
            continue
        if not safe:
            wrong.append(f"line {node.lineno}: {ast.unparse(node)}")
    return wrong


def is_safe(call: ast.Call) -> bool:
    name, attribute = ast.unparse(call.func), ast.unparse(call.func).rpartition(".")[2]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if keywords.get("trust_remote_code", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
        return False
    if keywords.get("weights_only", "True") != "True" or keywords.get("use_safetensors", "True") != "True":
        return False
    if attribute == "from_pretrained" and not name.startswith(("MllmReID", "cls.", "super(")):
        # The model classes run no foreign code and read safetensors alone, see tests/model.
        weights = not name.removesuffix(".from_pretrained").endswith(("Config", "Processor", "Tokenizer"))
        return "trust_remote_code" in keywords and (not weights or "use_safetensors" in keywords)
    if attribute == "read_config" and not ast.unparse(call.args[0]).startswith("MllmReID"):
        return "trust_remote_code" in keywords
    if name == "torch.load":
        return "weights_only" in keywords
    return name not in ("eval", "exec", "pipeline", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load")


def test_every_load_reads_safetensors_and_runs_no_foreign_code():
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "model"]
    assert len(files) > 100
    wrong = {str(path): unsafe_loads(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in wrong.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "AutoConfig.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "AutoProcessor.from_pretrained(name, trust_remote_code=True)",
        "LlavaForConditionalGeneration.from_pretrained(name, use_safetensors=True)",
        "read_config(AutoConfig, name, {})",
        "load = AutoModel.from_pretrained",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "import pickle",
        "yaml.load(text)",
    ],
)
def test_an_unsafe_load_would_be_found(line):
    assert unsafe_loads(line) and not unsafe_loads("load_whole(AutoModel.from_pretrained, name)")


# ---- foreign configurations ------------------------------------------------------------------------------------------

HUGE, DEEP = "1" + "0" * 400, "[" * 100_000 + "]" * 100_000
WHOLE = ["[]", "null", "3", '"mllmreid"', "{}", "", "{", "NaN", DEEP, HUGE, '{"model_type": [1]}', "\xff", "[{}]"]
WRONG = [None, [], {}, "x", -1, 0, 10**30, 1.5, True, [None], {"model_type": "llava"}, float("nan")]
# Fields of our configuration, a native one, and the nested ones.
FIELDS = ("model_type", "height", "image_prefix_ids", "llm_layer", "vision_layer", "backbone", "adapter", "dtype")
FIELDS = (*FIELDS, "trained_on", "architectures", "auto_map", "num_identities", "quantization_config", "_name_or_path")
NATIVE = ("model_type", "image_token_index", "vision_feature_layer", "projector_hidden_act", "auto_map")
NESTED = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "patch_size")
NESTED = (*NESTED, "image_size", "hidden_act", "rope_parameters", "intermediate_size", "num_channels", "head_dim")


def changes(config: dict) -> list[tuple[str, str]]:
    """Yields the mistake and the text of the config.json."""
    found = [(text[:20], text) for text in WHOLE]
    of_ours = "mllm_config" in config
    native = config["mllm_config"] if of_ours else config
    places = [(config, name) for name in (*(FIELDS if of_ours else NATIVE), *config)]
    places += [(native, part) for part in ("text_config", "vision_config")]
    places += [(native[part], name) for part in ("text_config", "vision_config") for name in NESTED]
    for number, (holder, name) in enumerate(places):
        # Each field takes a few of the wrong values. All values occur many times.
        for value in WRONG[number % 3 :: 3]:
            had, holder[name] = (name in holder, holder.get(name)), value
            found.append((f"{name}: {value}", json.dumps(config)))
            holder[name] = had[1]
            if not had[0]:
                del holder[name]
    return found


@pytest.fixture
def commands(disk, tmp_path, monkeypatch):
    """commands(folder) -> main function and arguments by name, each with a new output."""
    data = ["--dataset", "market1501", "--data_dir", str(disk.people)]
    data += ["--captions_file", str(disk.people / "reid_raw.json")]
    query = str(next((disk.people / "query").iterdir()))
    embed.main(["--model", str(disk.ours), "--images", str(disk.people / "query"), "--output", str(tmp_path / "index")])

    def of(folder):
        model, out = ["--model", str(folder)], ["--output", str(tmp_path / "out")]
        quick = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--max_steps", "1", "--loss_lambda", "1"]
        quick += ["--identities_per_batch", "2", "--images_per_identity", "2", "--disable_tqdm", "true"]
        quick += ["--eval_strategy", "no", "--save_strategy", "no"]
        return {
            "embed": (embed.main, [*model, "--images", str(disk.people / "query"), *out]),
            "search": (search.main, [*model, "--embeddings", str(tmp_path / "index"), "--query", query]),
            "evaluate": (evaluate.main, [*model, *data, "--output_dir", str(tmp_path / "out")]),
            "train": (train.main, [*model, *data, *quick]),
            "dry run": (train.main, [*model, "--output_dir", str(tmp_path / "out"), "--dry_run", "true"]),
            "export": (export.main, [*model, *out]),
            "push": (push.main, [*model, "--to", "tester/x"]),
            "caption": (caption.main, [*model, *data[:4], *out]),
            "continuations": (continuations.main, [*model, *data, *out]),
        }

    monkeypatch.setattr(push, "find_repository", lambda *_, **__: ("tester/x", True))
    monkeypatch.setattr(push, "push", lambda *_: None)
    return of


@pytest.mark.parametrize("most", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["ours", "native"])
def test_a_foreign_configuration_is_one_line(disk, commands, tmp_path, kind, most):
    folder = tmp_path / "foreign"
    shutil.copytree(getattr(disk, kind), folder)
    config = json.loads((folder / "config.json").read_text())
    before = sorted(path.name for path in tmp_path.iterdir())
    escaped, refused = [], 0
    cases = changes(config)
    cases = cases[:: max(len(cases) // most, 1)]
    # Each mistake runs in one command, in turn.
    for number, (what, text) in enumerate(cases):
        (folder / "config.json").write_text(text, encoding="latin-1")
        tried = list(commands(folder).items())
        name, (main, argv) = tried[number % len(tried)]
        try:
            main(argv)
        except UserError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                escaped.append(f"{name}, {what}: {error}")
        except Exception as error:
            escaped.append(f"{name}, {what}: {type(error).__name__}: {str(error)[:200]}")
        output = tmp_path / "out"
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    assert escaped == [] and refused > len(cases) // 4
    assert sorted(path.name for path in tmp_path.iterdir()) == before
