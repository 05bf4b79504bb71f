"""One process that serves many calls of the package, because each new process imports for seconds."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

SERVER = """
import contextlib, io, json, os, sys
import torch
import run_reid, modeling_mllmreid
from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor
from modeling_mllmreid.model import PersonReIDPipeline
answers = sys.stdout

def upload(folder, name):
    HfApi().create_repo(name, private=True)
    HfApi().upload_folder(repo_id=name, folder_path=folder)

def embed(folder, image):
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.inference_mode():
        return model.encode_images(processor(images=[image])["pixel_values"]).tolist()

def direct(folder, kind, name, private):
    # A model, its processor, its configuration or the pipeline by their own methods; what was refused.
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    model.config.get_text_config()._name_or_path = processor.image_processor._name_or_path = "/home/anna/models"
    of = {"model": model, "processor": processor, "config": model.config}
    of["pipeline"] = PersonReIDPipeline(model, processor=processor, device="cpu")
    try:
        of[kind].push_to_hub(name, **({} if private == "unsaid" else {"private": private != "False"}))
    except ValueError as error:
        return str(error)

def cli(*argv):
    sys.argv = ["run_reid.py", *argv]
    return run_reid.main()

for line in sys.stdin:
    name, arguments, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        result = {"upload": upload, "embed": embed, "cli": cli, "direct": direct}[name](*arguments)
    print(json.dumps([result, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class CliProcess:
    """process("cli" | "embed" | "upload" | "direct", *arguments, token=...) -> [result, stdout, stderr]; a context.

    environment: its variables, the Hub's address among them, which is read once. folder: where it runs.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path | None = None):
        self.environment, self.folder = dict(environment), folder

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", SERVER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=self.environment, cwd=self.folder, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def __call__(self, name: str, *arguments: Any, token: str | None = None) -> list[Any]:
        self.process.stdin.write(json.dumps([name, list(map(str, arguments)), token]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
