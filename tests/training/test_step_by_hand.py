"""A whole training step with settings other than the defaults, written by hand in float64: losses, gradients, logs.

By hand means by loops over native LLaVA's own modules: nothing of our forward pass or of our losses is called.
"""

import copy
import math

import pytest
import torch

from modeling_mllmreid.training.parameters import freeze_unused_parameters

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
COMMON = {"id_weight": 0.7, "triplet_weight": 1.6, "label_smoothing": 0.25}
SETTINGS = {
    "captions in the ReID losses, soft margin, earlier layers": {
        **COMMON,
        **{"loss_lambda": 0.35, "reid_text": True, "triplet_soft_margin": True, "distillation_weight": 0.6},
        **{"llm_layer": 1, "vision_layer": 1, "text_loss": "triplet"},
    },
    "a margin that some triplets keep, no neck": {
        **COMMON,
        **{"loss_lambda": 0.8, "triplet_margin": 0.02, "distillation_weight": 0.3, "bnneck": False},
    },
    "captions in the ReID losses alone": {
        **COMMON,
        **{"loss_lambda": 1.0, "reid_text": True, "reid_on": "llm", "text_temperature": 0.3},
    },
    "captions compared before the neck": {
        **COMMON,
        **{"loss_lambda": 0.6, "reid_text": True, "feature_after_bn": False, "distillation_weight": 0.2},
    },
    "the visual encoder alone, no weight on identities": {
        **{"loss_lambda": 0.2, "reid_on": "vision", "id_weight": 0.0, "triplet_margin": 0.9},
    },
}


def uneven(batch, bare=()):
    """Returns the batch in float64 with unequal people, targets of unequal length, and images without a caption."""
    batch = {name: rows.clone() for name, rows in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].double()
    batch["person_ids"] = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    for name in ("labels", "text_labels"):
        for row in bare:
            batch[name][row] = -100
        # One target is two tokens shorter, so that a mean of means would differ.
        kept = (batch[name][4] != -100).nonzero().flatten()
        batch[name][4, kept[-2:]] = -100
    for row in bare:
        batch["text_caption_mask"][row] = False
    # No other token reads a masked token.
    batch["attention_mask"][2, -12] = batch["text_attention_mask"][2, -12] = 0
    return batch


# ---- by hand ---------------------------------------------------------------------------------------------------------


def hidden_states(model, embeddings, mask):
    """Returns the hidden states (B, T, D) of each layer, the last one after the final norm."""
    return model.mllm.model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True
    ).hidden_states


def target_logits(model, hidden, labels):
    """Returns (logits, target) of every target token. The position before a token predicts it."""
    pairs = []
    for row in range(len(labels)):
        for place in range(1, labels.shape[1]):
            if labels[row, place] != -100:
                pairs.append((model.mllm.lm_head(hidden[row, place - 1]), int(labels[row, place])))
    return pairs


def log_softmax(logits):
    return logits - logits.exp().sum().log()


def triplet(config, anchors, others, own):
    """anchors, others: lists of (feature, person)."""
    terms = []
    for i, (anchor, person) in enumerate(anchors):
        far = [math.inf]
        near = []
        for j, (other, other_person) in enumerate(others):
            if own and i == j:
                continue
            distance = ((anchor - other) ** 2).sum().sqrt()
            (near if person == other_person else far).append(distance)
        if near and len(far) > 1:
            gap = max(near) - min(far[1:])
            soft = (1 + gap.exp()).log()
            terms.append(soft if config.triplet_soft_margin else (gap + config.triplet_margin).clamp(min=0))
    return sum(terms) / len(terms)


def contrastive(config, anchors, others):
    """anchors, others: lists of (feature, person). The mean over anchors and over the features of their person."""
    terms = []
    for anchor, person in anchors:
        cosines = [anchor @ other / (anchor @ anchor).sqrt() / (other @ other).sqrt() for other, _ in others]
        logs = log_softmax(torch.stack(cosines) / config.text_temperature)
        matches = [log for log, (_, other_person) in zip(logs, others, strict=True) if person == other_person]
        if matches:
            terms.append(-sum(matches) / len(matches))
    return sum(terms) / len(terms)


def neck(config, norm, rows):
    """Batch statistics. rows, result: lists of (feature, person)."""
    features = torch.stack([feature for feature, _ in rows])
    if config.bnneck:
        spread = (features - features.mean(0)).pow(2).mean(0)
        features = (features - features.mean(0)) / (spread + norm.eps).sqrt() * norm.weight
    return [(feature, person) for feature, (_, person) in zip(features, rows, strict=True)]


def id_loss(config, head, rows):
    """rows: list of (feature, person), after the neck. A smoothed target, the mean over rows."""
    total, classes = 0, len(head.classifier.weight)
    for feature, person in rows:
        logs = log_softmax(head.classifier.weight @ feature)
        total = total - (1 - config.label_smoothing) * logs[person] - config.label_smoothing / classes * logs.sum()
    return total / len(rows)


def by_hand(model, batch):
    """(language sums by branch, target tokens by branch, ReID loss, its parts, rows through each norm of a head)."""
    config, llava = model.config, model.mllm.model
    before, people = len(config.image_prefix_ids), batch["person_ids"].tolist()
    states = llava.vision_tower(
        batch["pixel_values"], interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states
    # Both features drop the class token.
    patches = llava.multi_modal_projector(states[config.mllm_config.vision_feature_layer][:, 1:])
    vision_layer = config.vision_layer if config.vision_layer is not None else config.mllm_config.vision_feature_layer
    features = {"vision": states[vision_layer][:, 1:].mean(1)}
    embed = model.get_input_embeddings()
    image_embeddings = embed(batch["input_ids"]).clone()
    image_embeddings[:, before : before + patches.shape[1]] = patches
    image = hidden_states(model, image_embeddings, batch["attention_mask"])
    features["llm"] = image[config.llm_layer][:, before : before + patches.shape[1]].mean(1)
    text = hidden_states(model, embed(batch["text_input_ids"]), batch["text_attention_mask"])

    sums, counts = {}, {}
    if config.loss_lambda < 1:
        student = target_logits(model, image[-1], batch["labels"])
        teacher = target_logits(model, text[-1], batch["text_labels"])
        for name, pairs in (("image", student), ("text", teacher)):
            sums[name] = sum(-log_softmax(logits)[target] for logits, target in pairs)
        if config.distillation_weight:
            sums["distillation"] = 0
            for (ours, _), (theirs, _) in zip(student, teacher, strict=True):
                wanted = log_softmax(theirs.detach())
                sums["distillation"] += (wanted.exp() * (wanted - log_softmax(ours))).sum()
        counts = dict.fromkeys(sums, len(student))

    captions = []
    for row in range(len(people)):
        places = batch["text_caption_mask"][row].nonzero().flatten()
        if config.reid_text and len(places):
            captions.append((text[config.llm_layer][row, places].mean(0), people[row]))
    parts, normed, losses = {}, {}, []
    for name in ("llm", "vision") if config.reid_on == "both" else (config.reid_on,):
        images, head = list(zip(features[name], people, strict=True)), model.reid_head[name]
        texts = captions if name == "llm" else []
        shared = config.text_loss == "triplet"
        normed[name, "bottleneck"] = images + texts if shared else images
        after = neck(config, head.bottleneck, normed[name, "bottleneck"])
        if texts and not shared:
            normed[name, "text_bottleneck"] = texts
            after += neck(config, head.text_bottleneck, texts)
        parts[f"id_{name}"] = id_loss(config, head, after)
        parts[f"triplet_{name}"] = triplet(config, images, images, own=True)
        loss = config.id_weight * parts[f"id_{name}"] + config.triplet_weight * parts[f"triplet_{name}"]
        if texts and shared:
            across = triplet(config, images, texts, own=False), triplet(config, texts, images, own=False)
        elif texts:
            sides = (after[: len(people)], after[len(people) :]) if config.feature_after_bn else (images, texts)
            across = contrastive(config, *sides), contrastive(config, *sides[::-1])
        if texts:
            parts[f"{config.text_loss}_text"] = sum(across) / 2
            loss = loss + config.triplet_weight * parts[f"{config.text_loss}_text"]
        losses.append(loss)
    return sums, counts, sum(losses) / len(losses), parts, normed


def total(config, sums, counts, reid):
    language = 0
    if sums:
        language = (sums["image"] / counts["image"] + sums["text"] / counts["text"]) / 2
        if "distillation" in sums:
            language = language + config.distillation_weight * sums["distillation"] / counts["distillation"]
    return (1 - config.loss_lambda) * language + config.loss_lambda * reid


def assert_same_gradients(model, expected):
    compared = 0
    for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        if not one.requires_grad:
            assert one.grad is None, name
            continue
        want = torch.zeros_like(other) if other.grad is None else other.grad
        got = torch.zeros_like(one) if one.grad is None else one.grad
        # Llama's norm always rounds to float32, and the gradient of a key bias is a rounding error.
        assert float((got - want).abs().max()) <= 1e-6 * float(want.abs().max()) + 1e-10, name
        compared += 1
    assert compared > 10


# ---- compared --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_forward_is_the_step_by_hand(make_model, make_batch, name):
    model = make_model(**SETTINGS[name]).double().train()
    # The initial classifier is close to zero, where wrong logits would hardly show.
    for head in model.reid_head.values():
        torch.nn.init.normal_(head.classifier.weight, generator=torch.Generator().manual_seed(1))
        for norm in (head.bottleneck, head.text_bottleneck):
            if isinstance(norm, torch.nn.BatchNorm1d):
                torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator().manual_seed(2))
    hand, batch = copy.deepcopy(model), uneven(make_batch(8), bare=(1, 6))
    output = model(**batch)
    output.loss.backward()
    sums, counts, reid, parts, normed = by_hand(hand, batch)
    loss = total(hand.config, sums, counts, reid)
    loss.backward()

    torch.testing.assert_close(output.loss, loss, **CLOSE)
    torch.testing.assert_close(output.reid_loss, reid, **CLOSE)
    expected = parts | {f"lm_{branch}": value / counts[branch] for branch, value in sums.items()}
    assert output.loss_parts.keys() == expected.keys() and (output.label_counts or {}) == counts
    for part, value in expected.items():
        torch.testing.assert_close(output.loss_parts[part], value.detach(), **CLOSE)
        assert not output.loss_parts[part].requires_grad
    for branch, value in sums.items():
        torch.testing.assert_close(output.language_loss_sums[branch], value, **CLOSE)
    assert_same_gradients(model, hand)
    for (head, neck_name), rows in normed.items():
        if model.config.bnneck:
            features = torch.stack([feature for feature, _ in rows]).detach()
            norm = getattr(model.reid_head[head], neck_name)
            torch.testing.assert_close(norm.running_mean, 0.1 * features.mean(0), **CLOSE)
            torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * features.var(0), **CLOSE)
            assert norm.num_batches_tracked == 1
    for head, logits in output.id_logits.items():
        assert logits.shape == (sum(len(rows) for (name, _), rows in normed.items() if name == head), 4)


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize(("name", "scale"), [(list(SETTINGS)[0], 1), (list(SETTINGS)[1], 64), (list(SETTINGS)[3], 1)])
def test_an_accumulated_step_of_the_trainer_is_the_step_by_hand(train, make_model, make_batch, name, scale, chunk):
    """Compares logs and gradients of two micro-batches with unequal targets, plain and with cached gradients."""
    trainer = train(model={"loss_lambda": 0.5}, max_steps=1, grad_cache_chunk=chunk, diagnostics_steps=0).trainer
    model = make_model(**SETTINGS[name]).double()
    freeze_unused_parameters(model)
    hand = copy.deepcopy(model)
    trainer.model = trainer.model_wrapped = model
    # A scaler as with float16. Its factor must not reach the gradient of the features twice.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale > 1 else None
    batches = [uneven(make_batch(8, seed=1), bare=(1, 6)), uneven(make_batch(8, seed=2), bare=(0, 3, 4))]
    # In eval mode, like a loaded model or one after an evaluation.
    model.eval()
    samples, count = trainer.get_batch_samples(iter(batches), 2, trainer.args.device)
    trainer.current_gradient_accumulation_steps = 2
    losses = [trainer.training_step(model, batch, count) for batch in samples]

    steps = [by_hand(hand, batch) for batch in batches]
    window = {branch: steps[0][1][branch] + steps[1][1][branch] for branch in steps[0][1]}
    assert steps[0][1] != steps[1][1]
    # The language loss is over all targets of the step, the ReID loss the mean over its micro-batches.
    expected = [total(hand.config, sums, window, reid / 2) for sums, _, reid, _, _ in steps]
    (scale * sum(expected)).backward()
    for got, want in zip(losses, expected, strict=True):
        torch.testing.assert_close(got, want.detach(), **CLOSE)
    assert_same_gradients(model, hand)

    trainer._loss_parts.end_step(counted=True)
    logged = trainer._loss_parts.take(trainer.accelerator)
    logs = [parts | {f"lm_{b}": value / counts[b] for b, value in sums.items()} for sums, counts, _, parts, _ in steps]
    assert logged.keys() == logs[0].keys()
    for part, value in logged.items():
        assert value == pytest.approx((logs[0][part].item() + logs[1][part].item()) / 2, abs=6e-5), part
    # In eval mode the batch norm of the heads would not change.
    assert model.training and (not model.config.bnneck or model.reid_head["llm"].bottleneck.num_batches_tracked == 2)
