"""Every function with a seed depends on it: equal seeds give equal results, other seeds give others."""

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.data.inspection import contact_sheet
from modeling_mllmreid.data.splits import make_splits, split_query_gallery, split_validation
from modeling_mllmreid.research.ablation.controls import corrupt_captions, permute_captions
from modeling_mllmreid.research.pretraining import CaptionPretraining, align_images, described_images, pretrain_language
from modeling_mllmreid.research.tiny_llava import build_tiny_llava
from modeling_mllmreid.synthetic.people.attributes import make_person, random_stream
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.synthetic.rendering.crops import render
from modeling_mllmreid.synthetic.rendering.scenes import make_scene
from modeling_mllmreid.synthetic.rendering.shots import PasserBy, plan_shot
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.text.generation import generate_texts

SIZES = {"hidden_size": 16, "tower_layers": 1, "lm_layers": 1}
SHORT = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}


def digest(value):
    """A digest of a result: of an image, a tensor, or any value with a `repr`."""
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    if torch.is_tensor(value):
        value = value.detach().numpy()
    return hashlib.sha256(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()).hexdigest()


@pytest.fixture
def draws(tiny_processor, make_llava, tmp_path):
    """The functions of a seed, by name."""
    llava = build_tiny_llava(tiny_processor, **SIZES, seed=0)
    instructions = ["Go on.", "Describe this person."]
    rows = [Sample(f"{person}/{i}.png", person, -1, (f"text {person}.{i}",)) for person in range(9) for i in range(4)]
    split = make_split(rows, root=tmp_path, source="own")
    person, before = make_person(0, "train", 1), make_scene(0, 0)
    passer_by = PasserBy(number=0, aside=8, behind=10, yaw=0, seed=0)
    shot = replace(plan_shot(random_stream(0, "shot"), before), passers_by=(passer_by,))

    def caption_task(seed):
        return CaptionPretraining(tiny_processor, instructions, people=4, target_tokens=6, seed=seed)

    def pretrained(seed):
        mllm = copy.deepcopy(llava)
        loss = pretrain_language(mllm, caption_task(0), **SHORT, seed=seed)
        return loss, mllm.lm_head.weight.sum().item()

    def aligned(seed):
        settings = {"instructions": instructions, "people": 2, "target_tokens": 6, **SHORT}
        return align_images(copy.deepcopy(llava), caption_task(0), **settings, seed=seed)

    def sheet(seed):
        for row in rows:
            path = tmp_path / row.file_name
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 8), (20 * row.person_id, 0, 0)).save(path)
        contact_sheet(tmp_path / "sheet.png", {"train": split}, people=2, images=2, seed=seed)
        return (tmp_path / "sheet.png").read_bytes()

    def world(seed):
        folder = tmp_path / f"world{seed}-{len(list(tmp_path.iterdir()))}"
        sizes = {"train_identities": 2, "test_identities": 1, "images_per_camera": 2, "cameras": 2}
        write_pedestrians(folder, **sizes, seed=seed)
        return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]

    def splits(seed):
        path = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}.json"
        return {name: images["file_name"][:] for name, images in make_splits(split, path, seed=seed).items()}

    def texts(seed):
        prompts = [tiny_processor.text_prompt_ids("a man"), tiny_processor.text_prompt_ids("a woman")]
        return generate_texts(make_llava(), tiny_processor.tokenizer, prompts, do_sample=True, seed=seed)

    return {
        "person": lambda seed: make_person(seed, "train", 3),
        "random stream": lambda seed: random_stream(seed, "key").random(),
        "descriptions": lambda seed: sample_descriptions(5, seed=seed),
        "scene": lambda seed: make_scene(seed, 0).ground[0],
        "sensor noise": lambda seed: render(person, replace(shot, sensor=seed), before, seed=0).image,
        "posture": lambda seed: render(person, replace(shot, posture=seed), before, seed=0).image,
        "passers-by": lambda seed: render(person, shot, before, seed=seed).image,
        "rendered world": world,
        "contact sheet": sheet,
        "validation people": lambda seed: split_validation(split, val_identities=3, seed=seed)[1]["file_name"][:],
        "queries": lambda seed: split_query_gallery(split, seed=seed)[0]["file_name"][:],
        "splits": splits,
        "permuted captions": lambda seed: permute_captions(split, seed)["caption"][:],
        "corrupted captions": lambda seed: corrupt_captions(split, 0.5, seed)["caption"][:],
        "weights": lambda seed: build_tiny_llava(tiny_processor, **SIZES, seed=seed).lm_head.weight,
        "texts of the pretraining": lambda seed: caption_task(seed).pairs,
        "order of the pretraining": pretrained,
        "images of the pretraining": lambda seed: described_images(tiny_processor, 1, seed=seed)[0],
        "captions of the pretraining": lambda seed: described_images(tiny_processor, 1, seed=seed)[1],
        "image pretraining": aligned,
        "texts": texts,
    }


def test_every_function_with_a_seed_depends_on_it(draws):
    for name, draw in draws.items():
        first = digest(draw(1))
        assert digest(draw(1)) == first, name
        assert len({first, *(digest(draw(seed)) for seed in (2, 3, 4))}) > 2, name
