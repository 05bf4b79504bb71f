"""`convert`: published layouts of random weights become vision forms with the features that their projects compute."""

import json
import re
from pathlib import Path

import numpy as np
import published_cnns
import published_models as published
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from modeling_mllmreid.commands import convert as command
from modeling_mllmreid.commands import evaluate
from modeling_mllmreid.evaluation.embedding import embed_feature
from modeling_mllmreid.hub.convert import LAYOUTS, convert, find_layout, read_checkpoint
from modeling_mllmreid.hub.layouts.layout import LayoutOptions
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.loading import load_encoder
from modeling_mllmreid.utils.errors import UserError


def crops(height, width):
    """Two crops with noise, and with areas of their own, which the pooled feature shows."""
    generator = torch.Generator().manual_seed(3)
    areas = F.interpolate(torch.randn(2, 3, 4, 2, generator=generator), size=(height, width))
    return areas + torch.randn(2, 3, height, width, generator=generator)


def mean_camera(weights):
    """The weights with one camera, the mean of all."""
    mean = published.Weights()
    mean.update(weights)
    mean["base.sie_embed"] = weights["base.sie_embed"].mean(0, keepdim=True)
    return mean


def case(weights, feature, size, options=None, **fields):
    return weights, feature, size, options or {}, fields


def cases():
    """By name: weights, their feature of pixels, size of the crops, options."""
    vit, clip = published.transreid_weights, published.clip_reid_weights

    def transreid(weights, stride, **options):
        return lambda pixels: published.transreid_feature(weights, pixels, stride, **options)

    def clip_reid(weights, stride, **options):
        return lambda pixels: published.clip_reid_feature(weights, pixels, stride, **options)

    plain, overlap, wide = vit(128), vit(210, cameras=3, parts=True), vit(192, cameras=4)
    odd = vit(11 * 5, parts=True)
    yield "transreid", "transreid", case(plain, transreid(plain, 16), (256, 128))
    yield (
        "transreid stride 12, parts and a camera",
        "transreid",
        case(overlap, transreid(overlap, 12, camera=2, parts=True), (256, 128), {"camera": "2"}),
    )
    yield (
        "transreid, the mean camera",
        "transreid",
        case(
            wide,
            transreid(mean_camera(wide), 16, camera=0),
            (384, 128),
        ),
    )
    size = {"height": 136, "width": 64, "stride": 12}
    yield "transreid, odd number of patches", "transreid", case(odd, transreid(odd, 12, parts=True), (136, 64), size)
    weights = vit(128, prefix="backbone.")
    yield "personvit", "personvit", case(weights, transreid(weights, 16, prefix="backbone."), (256, 128))
    weights = clip(128)
    yield "clip_reid", "clip_reid", case(weights, clip_reid(weights, 16), (256, 128))
    yield (
        "clip_reid after the norm",
        "clip_reid",
        case(weights, clip_reid(weights, 16, after=True), (256, 128), feature_after_bn=True),
    )
    side = clip(210, cameras=3)
    yield (
        "clip_reid stride 12 and a camera",
        "clip_reid",
        case(side, clip_reid(side, 12, camera=1), (256, 128), {"camera": "1"}),
    )
    osnet = published_cnns.osnet_weights()
    yield "osnet", "osnet", case(osnet, lambda pixels: published_cnns.osnet_feature(osnet, pixels), (256, 128))
    solider, plain_swin = published.solider_weights(), published.solider_weights(semantic=False)
    size = {"height": 192, "width": 64}
    yield "solider", "solider", case(solider, lambda p: published.solider_feature(solider, p), (192, 64), size)
    yield (
        "solider, another weight",
        "solider",
        case(
            solider, lambda p: published.solider_feature(solider, p, 0.9), (192, 64), {**size, "semantic_weight": 0.9}
        ),
    )
    yield (
        "solider without weight",
        "solider",
        case(plain_swin, lambda p: published.solider_feature(plain_swin, p, None), (192, 64), size),
    )
    for at_start in (True, False):
        mega = published.megadescriptor_weights(at_start=at_start)
        feature = lambda p, mega=mega, at_start=at_start: published.megadescriptor_feature(mega, p, at_start=at_start)  # noqa: E731
        yield f"megadescriptor, merging at start {at_start}", "megadescriptor", case(mega, feature, (96, 96))
    for ibn in (False, True):
        fast = published_cnns.fast_reid_weights(ibn=ibn)
        feature = lambda p, fast=fast, ibn=ibn: published_cnns.fast_reid_feature(fast, p, ibn=ibn)  # noqa: E731
        yield f"fast_reid, ibn {ibn}", "fast_reid", case(fast, feature, (384, 128))


CASES = {name: (layout, *values) for name, layout, values in cases()}


@pytest.mark.parametrize("name", CASES)
def test_the_feature_is_that_of_the_project(name):
    layout, weights, feature, (height, width), options, fields = CASES[name]
    model, processor = convert(dict(weights), LAYOUTS[layout], LayoutOptions(**options), **fields)
    assert (processor.height, processor.width) == (height, width)
    pixels = crops(height, width)
    with torch.no_grad():
        expected, computed = F.normalize(feature(pixels), dim=1), model.encode_images(pixels)
    torch.testing.assert_close(computed, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    model.tower.set_attn_implementation("eager")  # as for an export to ONNX
    with torch.no_grad():
        torch.testing.assert_close(model.encode_images(pixels), expected, atol=1e-5, rtol=0)


def saved(folder, weights, wrap=lambda weights: weights):
    torch.save(wrap(dict(weights)), folder / "published.pth")
    return str(folder / "published.pth")


@pytest.mark.parametrize("name", ["osnet", "solider", "fast_reid, ibn True", "megadescriptor, merging at start True"])
def test_what_the_command_writes_loads_with_all_weights(name, tmp_path):
    layout, weights, feature, (height, width), options, _ = CASES[name]
    flags = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    # As a distributed training saves it.
    file = saved(tmp_path, weights, lambda weights: {"state_dict": {f"module.{k}": v for k, v in weights.items()}})
    command.main([file, "--to", str(tmp_path / "form"), "--layout", layout, *flags])
    model, _ = load_encoder(ModelArguments(str(tmp_path / "form")))
    pixels = crops(height, width)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().encode_images(pixels), F.normalize(feature(pixels)), atol=1e-5, rtol=0)


def test_the_command_writes_a_checkpoint_that_the_other_commands_take(disk, tmp_path, capsys):
    _, weights, feature, (height, width), _, _ = CASES["clip_reid"]
    folder, options = tmp_path / "form", ["--trained_on", "cuhk_pedes", "--licence", "mit"]
    command.main([saved(tmp_path, weights), "--to", str(folder), *options])
    assert re.search(
        r"clip_reid, [\d,]+ parameters, crops of 256 x 128, feature of 192 numbers: ", capsys.readouterr().out
    )
    card, config = (folder / "README.md").read_text(), json.loads((folder / "config.json").read_text())
    assert "clip_reid, https://github.com/Syliz517/CLIP-ReID" in card and config["base_licence"] == "mit"
    assert config["trained_on"] == ["cuhk_pedes"] and not [path for path in folder.iterdir() if path.suffix == ".pth"]
    model, processor = load_encoder(ModelArguments(str(folder)))
    paths = sorted((disk.people / "query").iterdir())[:2]
    resized = [np.asarray(Image.open(path).convert("RGB").resize((width, height), 3), np.float32) for path in paths]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = F.normalize(feature((pixels - 0.5) / 0.5), dim=1)
    np.testing.assert_allclose(embed_feature(model, processor, paths), expected.numpy(), atol=1e-5)
    market = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "out")]
    evaluate.main(["--model", str(folder), *market])
    assert "warning: cuhk_pedes and market1501 share images" in capsys.readouterr().out
    with pytest.raises(UserError, match="form: exists and is not empty"):
        command.main([str(tmp_path / "published.pth"), "--to", str(folder)])


class Code:
    """An object whose pickle runs code."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_needs_code_is_refused(tmp_path, capsys):
    file = saved(tmp_path, {"base.cls_token": torch.zeros(1), "args": Code()})
    with pytest.raises(
        UserError, match=r"its pickle needs \S*print to be run, and no pickle is run: save its state_dict"
    ):
        command.main([file, "--to", str(tmp_path / "form")])
    assert "this must not run" not in capsys.readouterr().out and not (tmp_path / "form").exists()


def test_mistakes(tmp_path):
    plain = published.transreid_weights(128)
    cameras, jpm = published.transreid_weights(128, cameras=2), published.transreid_weights(128, parts=True)
    nan = {**plain, "base.norm.bias": torch.full((128,), float("nan"))}
    clip = published.clip_reid_weights(128)
    biased = {**clip, "bottleneck.bias": torch.ones(128)}
    cases = (
        ({"a": 1}, [], "holds no weights among a: give a checkpoint with a state_dict"),
        (
            {**plain, "base.norm.bias": torch.zeros(128, device="meta")},
            [],
            "becomes tower.norm.bias is not plain floats",
        ),
        ({**plain, "base.x": torch.zeros(1)}, [], "has no place for 1 weights, 'base.x' first: the checkpoint is"),
        ({"encoder.x.weight": torch.zeros(1)}, [], "are those of no known layout (clip_reid, transreid, osnet"),
        (plain, ["--layout", "transreiD"], "layout 'transreiD': give one of clip_reid, .*: did you mean 'transreid'"),
        (plain, ["--layout", "osnet"], "layout osnet: has no place for .* 'base.cls_token' first"),
        (
            published.transreid_weights(128, prefix=""),
            [],
            "that several projects use: give --layout personvit if it is",
        ),
        (published.transreid_weights(100), [], "positions for 100 patches: give the --height, --width and --stride"),
        (plain, ["--stride", "12"], "positions for 128 patches: give"),
        (plain, ["--camera", "1"], "camera: this checkpoint of the layout transreid has no use for it: leave it out"),
        (cameras, ["--camera", "2"], "camera '2': the checkpoint has the cameras 0 to 1: give one, or mean"),
        (plain, ["--semantic_weight", "0.5"], "semantic_weight: this checkpoint of the layout transreid has no use"),
        ({k: v for k, v in plain.items() if "qkv.bias" not in k}, [], "attention of another kind: only heads of 64"),
        (
            {k: v for k, v in jpm.items() if k != "b2.1.bias"},
            [],
            "no weight of the checkpoint becomes tower.part_norm.bias",
        ),
        ({**plain, "base.norm.bias": torch.zeros(3)}, [], r"becomes tower.norm.bias is \(3,\), not \(128,\)"),
        ({**plain, "base.pos_embed": torch.zeros(3)}, [], "its weights have other shapes"),
        (
            {**plain, "base.norm.bias": torch.zeros(128).long()},
            [],
            r"becomes tower.norm.bias is not plain floats \(int64",
        ),
        ({**plain, "base.norm.bias": torch.zeros(1).expand(128)}, [], "is not plain floats"),
        (
            {**plain, "base.blocks.99999999.norm1.bias": torch.zeros(1)},
            [],
            "has tower.layers.99999999 and no tower.layers.2: get it again",
        ),
        (nan, [], "layout transreid: the checkpoint: the weight tower.norm.bias is not finite"),
        (biased, ["--feature_after_bn", "true"], "its batch norm has a bias, which the feature here does not have"),
        (plain, ["--image_std", "1", "0", "1"], "image_std: has a 0"),
    )
    for weights, flags, message in cases:
        with pytest.raises(UserError, match=message.replace("layout (clip_reid", "layout \\(clip_reid")):
            command.main([saved(tmp_path, weights), "--to", str(tmp_path / "form"), *flags])
    (tmp_path / "broken.pth").write_bytes(b"hello")
    for file, message in ((tmp_path / "broken.pth", "not a checkpoint of torch"), (tmp_path / "x", "no such file")):
        with pytest.raises(UserError, match=message):
            command.main([str(file), "--to", str(tmp_path / "form")])
    assert not (tmp_path / "form").exists()


@pytest.mark.parametrize(
    ("entry", "prefix"),
    [("state_dict", "module."), ("params_ema", ""), ("model", "_orig_mod."), ("weights", "module.module._orig_mod.")],
)
def test_weights_as_training_programs_store_them(entry, prefix, tmp_path):
    weights = dict(published.transreid_weights(128))
    stored = {"epoch": 3, entry: {prefix + name: weight for name, weight in weights.items()}}
    read = read_checkpoint(Path(saved(tmp_path, stored)))
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", [name for name in CASES if not LAYOUTS[CASES[name][0]].shared])
def test_the_names_of_the_weights_show_the_layout(name):
    layout, weights, *_ = CASES[name]
    assert find_layout(weights, None).name == layout
