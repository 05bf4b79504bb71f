"""The engine that transformers brings, `transformers serve`, writes what the same model writes in this process.

It needs the package openai, which the test extra installs. It lists the models of a cache of the Hub.
"""

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
from noise_people import write_noise_people
from torch import nn
from transformers import CLIPImageProcessor, LlavaProcessor

from modeling_mllmreid.commands import caption, continuations
from modeling_mllmreid.data.captions import CaptionRecord, read_records
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.text.instructions import STANDARD_POOL
from modeling_mllmreid.utils.errors import UserError

pytest.importorskip("openai", reason="`transformers serve` needs the package openai")

NAME, COMMIT = "tiny/llava", "a" * 40
CHAT_TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the Hub with a tiny LLaVA whose texts depend on image and prompt."""
    folder = tmp_path_factory.mktemp("cache")
    repo = folder / "models--tiny--llava"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    ours = build_processor([*STANDARD_POOL, "a red shirt and blue jeans ."], height=64, width=64, patch_size=16)
    mllm = build_tiny_llava(ours, hidden_size=32, tower_layers=1, lm_layers=2, seed=0, position_std=1.0)
    for layer in mllm.model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 8
    # A model in this process never writes a special token, and a trained one does not want to: another logit is higher.
    mllm.lm_head.weight.data[list(ours.tokenizer.all_special_ids)] = 0
    stock = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64),
        ours.tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    for part in (mllm, stock):
        part.save_pretrained(repo / "snapshots" / COMMIT)
    return folder


@pytest.fixture(scope="module")
def url(cache, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    with log.open("wb") as file:
        server = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                httpx.get(f"{address}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def data(tmp_path):
    people = write_noise_people(tmp_path / "people", train=4, darker=True)
    return ["--dataset", "market1501", "--data_dir", str(people)]


def test_a_served_model_writes_what_it_writes_in_this_process(cache, url, data, tmp_path):
    flags = ["--model", str(cache / "models--tiny--llava" / "snapshots" / COMMIT), "--max_new_tokens", "6"]
    engine = ["--endpoint", url, "--served_model", NAME, "--requests_at_once", "8"]
    captions = {}
    for name, more in (("here", []), ("there", engine)):
        file = tmp_path / f"{name}.jsonl"
        caption.main([*flags, *data, "--output", str(file), "--captions_per_image", "4", *more])
        captions[name] = {record.key: record.caption for record in read_records(file, CaptionRecord)}
    assert captions["here"] == captions["there"] and len(captions["here"]) == 16
    assert len(set(captions["here"].values())) > 8  # they depend on the image and the prompt
    texts = {}
    for name, more in (("here", []), ("there", engine)):
        file = tmp_path / f"{name}_texts.jsonl"
        read = ["--captions_file", str(tmp_path / "here.jsonl"), "--output", str(file)]
        continuations.main([*flags, *data, *read, *more])
        texts[name] = {record.key: record.continuation for record in read_records(file)}
    assert texts["here"] == texts["there"] and len(set(texts["here"].values())) > 4
    with pytest.raises(UserError, match=f"serves no model 'other': give --served_model, it serves {NAME}"):
        caption.main([*flags, *data, "--output", str(tmp_path / "c.jsonl"), *engine, "--served_model", "other"])
