"""Random weights in the layouts of published ReID projects, and their test features in plain torch.

Names and shapes are those of the projects that `hub/layouts` names; the forward passes are written for these tests.
"""

import torch
import torch.nn.functional as F


class Weights(dict):
    """Weights by name; `linear`, `norm`, `conv` and `batch_norm` make random ones."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, *shape, scale=0.2):
        return scale * torch.randn(*shape, generator=self.generator)

    def add(self, name, *shape, scale=0.2):
        self[name] = self.random(*shape, scale=scale)

    def linear(self, name, inputs, outputs, bias=True):
        self.add(f"{name}.weight", outputs, inputs, scale=inputs**-0.5)
        if bias:
            self.add(f"{name}.bias", outputs)

    def conv(self, name, inputs, outputs, kernel, bias=False, groups=1):
        fan = inputs // groups * kernel * kernel
        self.add(f"{name}.weight", outputs, inputs // groups, kernel, kernel, scale=fan**-0.5)
        if bias:
            self.add(f"{name}.bias", outputs)

    def norm(self, name, size):
        self[f"{name}.weight"] = 1 + self.random(size)
        self.add(f"{name}.bias", size)

    def batch_norm(self, name, size, bias=True):
        self.norm(name, size)
        if not bias:
            self[f"{name}.bias"] = torch.zeros(size)
        self.add(f"{name}.running_mean", size)
        self[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=self.generator)
        self[f"{name}.num_batches_tracked"] = torch.tensor(3)

    # ---- forward -------------------------------------------------------------------------------------------------

    def run_linear(self, name, x):
        return F.linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def run_norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def run_batch_norm(self, name, x):
        values = (self[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values, training=False)

    def run_conv(self, name, x, **options):
        return F.conv2d(x, self[f"{name}.weight"], self.get(f"{name}.bias"), **options)


# ---- vision transformers -----------------------------------------------------------------------------------------


def attention(qkv, heads):
    """Plain softmax attention of (B, N, 3 D) into (B, N, D)."""
    batch, count, size = qkv.shape
    query, key, value = qkv.reshape(batch, count, 3, heads, size // 3 // heads).permute(2, 0, 3, 1, 4)
    shares = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return (shares @ value).transpose(1, 2).reshape(batch, count, size // 3)


def add_layer(weights, prefix, size):
    weights.norm(f"{prefix}norm1", size)
    weights.linear(f"{prefix}attn.qkv", size, 3 * size)
    weights.linear(f"{prefix}attn.proj", size, size)
    weights.norm(f"{prefix}norm2", size)
    weights.linear(f"{prefix}mlp.fc1", size, 4 * size)
    weights.linear(f"{prefix}mlp.fc2", 4 * size, size)


def run_layer(weights, prefix, x):
    heads = x.shape[-1] // 64
    qkv = weights.run_linear(f"{prefix}attn.qkv", weights.run_norm(f"{prefix}norm1", x, 1e-6))
    x = x + weights.run_linear(f"{prefix}attn.proj", attention(qkv, heads))
    inner = F.gelu(weights.run_linear(f"{prefix}mlp.fc1", weights.run_norm(f"{prefix}norm2", x, 1e-6)))
    return x + weights.run_linear(f"{prefix}mlp.fc2", inner)


def transreid_weights(positions, *, cameras=0, parts=False, size=128, depth=2, prefix="base."):
    weights = Weights()
    weights.add(f"{prefix}cls_token", 1, 1, size)
    weights.add(f"{prefix}pos_embed", 1, 1 + positions, size)
    if cameras:
        weights.add(f"{prefix}sie_embed", cameras, 1, size)
    weights.conv(f"{prefix}patch_embed.proj", 3, size, 16, bias=True)
    for index in range(depth):
        add_layer(weights, f"{prefix}blocks.{index}.", size)
    weights.norm(f"{prefix}norm", size)
    weights.linear(f"{prefix}fc", size, 10)
    for number in range(1, 3 if parts else 1):
        add_layer(weights, f"b{number}.0.", size)
        weights.norm(f"b{number}.1", size)
    for name in ("", *(["_1", "_2", "_3", "_4"] if parts else ())):
        weights.batch_norm(f"bottleneck{name}", size, bias=False)
        weights.linear(f"classifier{name}", size, 7, bias=False)
    return weights


def transreid_feature(weights, pixels, stride, *, camera=None, parts=False, prefix="base.", depth=2):
    x = weights.run_conv(f"{prefix}patch_embed.proj", pixels, stride=stride).flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{prefix}cls_token"].expand(len(x), -1, -1), x], 1) + weights[f"{prefix}pos_embed"]
    if camera is not None:
        x = x + 3.0 * weights[f"{prefix}sie_embed"][camera]
    for index in range(depth - parts):
        x = run_layer(weights, f"{prefix}blocks.{index}.", x)
    if not parts:
        return weights.run_norm(f"{prefix}norm", x, 1e-6)[:, 0]
    whole = weights.run_norm("b1.1", run_layer(weights, "b1.0.", x), 1e-6)[:, 0]
    count, token = x.shape[1] - 1, x[:, :1]
    order = [*range(5, count + 1), *range(1, 5)]
    order += [order[-2]] * (count % 2)
    half = len(order) // 2
    order = [place for pair in zip(order[:half], order[half:], strict=True) for place in pair]
    features = [whole]
    for part in range(4):
        places = order[part * (count // 4) : (part + 1) * (count // 4)]
        local = run_layer(weights, "b2.0.", torch.cat([token, x[:, places]], 1))
        features.append(weights.run_norm("b2.1", local, 1e-6)[:, 0] / 4)
    return torch.cat(features, 1)


def clip_reid_weights(positions, *, cameras=0, size=128, projected=64, depth=2):
    weights, prefix = Weights(), "image_encoder."
    weights.add(f"{prefix}class_embedding", size)
    weights.add(f"{prefix}positional_embedding", 1 + positions, size)
    weights.add(f"{prefix}proj", size, projected)
    weights.conv(f"{prefix}conv1", 3, size, 16)
    for name in ("ln_pre", "ln_post"):
        weights.norm(prefix + name, size)
    for index in range(depth):
        block = f"{prefix}transformer.resblocks.{index}."
        weights.norm(f"{block}ln_1", size)
        weights.add(f"{block}attn.in_proj_weight", 3 * size, size, scale=size**-0.5)
        weights.add(f"{block}attn.in_proj_bias", 3 * size)
        weights.linear(f"{block}attn.out_proj", size, size)
        weights.norm(f"{block}ln_2", size)
        weights.linear(f"{block}mlp.c_fc", size, 4 * size)
        weights.linear(f"{block}mlp.c_proj", 4 * size, size)
    if cameras:
        weights.add("cv_embed", cameras, size)
    for name, width in (("", size), ("_proj", projected)):
        weights.batch_norm(f"bottleneck{name}", width, bias=False)
        weights.linear(f"classifier{name}", width, 7, bias=False)
    weights.add("prompt_learner.cls_ctx", 7, 4, 16)
    weights.add("text_encoder.positional_embedding", 77, 16)
    return weights


def clip_reid_feature(weights, pixels, stride, *, camera=None, after=False, depth=2):
    prefix = "image_encoder."
    x = weights.run_conv(f"{prefix}conv1", pixels, stride=stride).flatten(2).transpose(1, 2)
    token = weights[f"{prefix}class_embedding"] + (0 if camera is None else weights["cv_embed"][camera])
    x = torch.cat([token.expand(len(x), 1, -1), x], 1) + weights[f"{prefix}positional_embedding"]
    x = weights.run_norm(f"{prefix}ln_pre", x, 1e-5)
    for index in range(depth):
        block = f"{prefix}transformer.resblocks.{index}."
        inner = weights.run_norm(f"{block}ln_1", x, 1e-5)
        qkv = F.linear(inner, weights[f"{block}attn.in_proj_weight"], weights[f"{block}attn.in_proj_bias"])
        x = x + weights.run_linear(f"{block}attn.out_proj", attention(qkv, x.shape[-1] // 64))
        inner = weights.run_linear(f"{block}mlp.c_fc", weights.run_norm(f"{block}ln_2", x, 1e-5))
        x = x + weights.run_linear(f"{block}mlp.c_proj", inner * torch.sigmoid(1.702 * inner))
    token = weights.run_norm(f"{prefix}ln_post", x, 1e-5)[:, 0]
    features = [token, token @ weights[f"{prefix}proj"]]
    if after:
        features = [weights.run_batch_norm(f"bottleneck{n}", x) for n, x in zip(("", "_proj"), features, strict=True)]
    return torch.cat(features, 1)


# ---- OSNet -------------------------------------------------------------------------------------------------------


def solider_weights(dim=32, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=7, semantic=True):
    weights = Weights()
    weights.conv("base.patch_embed.projection", 3, dim, 4, bias=True)
    weights.norm("base.patch_embed.norm", dim)
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        size = dim * 2**stage
        for block in range(depth):
            name = f"base.stages.{stage}.blocks.{block}"
            weights.norm(f"{name}.norm1", size)
            weights.norm(f"{name}.norm2", size)
            weights.add(f"{name}.attn.w_msa.relative_position_bias_table", (2 * window - 1) ** 2, count, scale=1.0)
            weights[f"{name}.attn.w_msa.relative_position_index"] = torch.zeros(window**2, window**2).long()
            weights.linear(f"{name}.attn.w_msa.qkv", size, 3 * size)
            weights.linear(f"{name}.attn.w_msa.proj", size, size)
            weights.linear(f"{name}.ffn.layers.0.0", size, 4 * size)
            weights.linear(f"{name}.ffn.layers.1", 4 * size, size)
        if stage < 3:
            weights.norm(f"base.stages.{stage}.downsample.norm", 4 * size)
            weights.linear(f"base.stages.{stage}.downsample.reduction", 4 * size, 2 * size, bias=False)
        weights.norm(f"base.norm{stage}", size)
        for letter in "wb" if semantic else "":
            weights.linear(f"base.semantic_embed_{letter}.{stage}", 2, dim * 2 ** min(stage + 1, 3))
    weights.batch_norm("bottleneck", dim * 8, bias=False)
    weights.linear("classifier", dim * 8, 7, bias=False)
    return weights


def window_attention(x, table, qkv, proj, heads, window, shift):
    """Attention of (B, h, w, D), each pair of patches by itself: which pairs see each other, and by which bias."""
    batch, height, width, size = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    tall, wide = x.shape[1:3]
    rows, columns = (grid.flatten() for grid in torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij"))
    # Where a patch lies after the shift, and whether it came round the edge.
    moved = [(rows - shift) % tall, (columns - shift) % wide]
    round_edge = [rows < shift, columns < shift]
    same = torch.ones(len(rows), len(rows), dtype=torch.bool)
    for place, crossed in zip(moved, round_edge, strict=True):
        same &= place[:, None] // window == place[None] // window
        same &= crossed[:, None] == crossed[None]
    step = [(place[:, None] - place[None]).clamp(1 - window, window - 1) + window - 1 for place in moved]
    bias = table[step[0] * (2 * window - 1) + step[1]].permute(2, 0, 1)
    query, key, value = qkv(x.flatten(1, 2)).reshape(batch, len(rows), 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) * (size // heads) ** -0.5 + bias
    shares = scores.masked_fill(~same, float("-inf")).softmax(-1)
    x = proj((shares @ value).transpose(1, 2).reshape(batch, len(rows), size))
    return x.reshape(batch, tall, wide, size)[:, :height, :width]


def solider_feature(weights, pixels, semantic_weight=0.2, heads=(1, 2, 4, 8), window=7):
    x = weights.run_conv("base.patch_embed.projection", pixels, stride=4).permute(0, 2, 3, 1)
    x = weights.run_norm("base.patch_embed.norm", x, 1e-5)
    for stage in range(4):
        for block in range(2):
            name = f"base.stages.{stage}.blocks.{block}"
            inner = window_attention(
                weights.run_norm(f"{name}.norm1", x, 1e-5),
                weights[f"{name}.attn.w_msa.relative_position_bias_table"],
                lambda x, name=name: weights.run_linear(f"{name}.attn.w_msa.qkv", x),
                lambda x, name=name: weights.run_linear(f"{name}.attn.w_msa.proj", x),
                heads[stage],
                window,
                window // 2 if block else 0,
            )
            x = x + inner
            inner = F.gelu(weights.run_linear(f"{name}.ffn.layers.0.0", weights.run_norm(f"{name}.norm2", x, 1e-5)))
            x = x + weights.run_linear(f"{name}.ffn.layers.1", inner)
        if stage == 3:
            return weights.run_norm("base.norm3", x, 1e-5).mean((1, 2))
        batch, height, width, size = x.shape
        merged = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        merged = weights.run_norm(f"base.stages.{stage}.downsample.norm", merged, 1e-5)
        merged = weights.run_linear(f"base.stages.{stage}.downsample.reduction", merged)
        x = merged.reshape(batch, height // 2, width // 2, 2 * size)
        if semantic_weight is not None:
            shares = torch.tensor([semantic_weight, 1 - semantic_weight])
            scale = F.softplus(weights.run_linear(f"base.semantic_embed_w.{stage}", shares))
            x = x * scale + weights.run_linear(f"base.semantic_embed_b.{stage}", shares)
    raise AssertionError


def megadescriptor_weights(dim=16, heads=(1, 2, 4, 8), window=3, at_start=True):
    """timm's Swin; `at_start`: with the merging of patches as since timm 0.9."""
    weights = Weights()
    weights.conv("patch_embed.proj", 3, dim, 4, bias=True)
    weights.norm("patch_embed.norm", dim)
    for stage, count in enumerate(heads):
        size = dim * 2**stage
        for block in range(2):
            name = f"layers.{stage}.blocks.{block}"
            add_layer(weights, f"{name}.", size)
            weights.add(f"{name}.attn.relative_position_bias_table", (2 * window - 1) ** 2, count, scale=1.0)
        if stage < 3:
            merging = f"layers.{stage + at_start}.downsample"
            weights.norm(f"{merging}.norm", 4 * size)
            weights.linear(f"{merging}.reduction", 4 * size, 2 * size, bias=False)
    weights.norm("norm", dim * 8)
    weights.linear("head.fc", dim * 8, 7)
    return weights


def megadescriptor_feature(weights, pixels, heads=(1, 2, 4, 8), window=3, at_start=True):
    x = weights.run_conv("patch_embed.proj", pixels, stride=4).permute(0, 2, 3, 1)
    x = weights.run_norm("patch_embed.norm", x, 1e-5)
    for stage in range(4):
        for block in range(2):
            name = f"layers.{stage}.blocks.{block}"
            x = x + window_attention(
                weights.run_norm(f"{name}.norm1", x, 1e-5),
                weights[f"{name}.attn.relative_position_bias_table"],
                lambda x, name=name: weights.run_linear(f"{name}.attn.qkv", x),
                lambda x, name=name: weights.run_linear(f"{name}.attn.proj", x),
                heads[stage],
                window,
                window // 2 if block and x.shape[1] > window else 0,
            )
            inner = F.gelu(weights.run_linear(f"{name}.mlp.fc1", weights.run_norm(f"{name}.norm2", x, 1e-5)))
            x = x + weights.run_linear(f"{name}.mlp.fc2", inner)
        if stage < 3:
            name = f"layers.{stage + at_start}.downsample"
            merged = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
            x = weights.run_linear(f"{name}.reduction", weights.run_norm(f"{name}.norm", merged, 1e-5))
    return weights.run_norm("norm", x, 1e-5).mean((1, 2))


# ---- fast-reid ---------------------------------------------------------------------------------------------------
