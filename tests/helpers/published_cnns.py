"""Random weights in the layouts of published convolutional networks, and their test features in plain torch.

Names and shapes are those of OSNet (torchreid) and of fast-reid's SBS; the forward passes are written for these tests.
"""

import torch
import torch.nn.functional as F
from published_models import Weights


def osnet_weights(channels=(16, 64, 64, 128), size=24):
    weights = Weights()

    def conv(name, inputs, outputs, kernel=1):
        weights.conv(f"{name}.conv", inputs, outputs, kernel)
        weights.batch_norm(f"{name}.bn", outputs)

    def light(name, width):
        weights.conv(f"{name}.conv1", width, width, 1)
        weights.conv(f"{name}.conv2", width, width, 3, groups=width)
        weights.batch_norm(f"{name}.bn", width)

    conv("conv1", 3, channels[0], 7)
    for stage, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False), 2):
        for block in range(2):
            name, middle = f"conv{stage}.{block}", outputs // 4
            conv(f"{name}.conv1", inputs if block == 0 else outputs, middle)
            light(f"{name}.conv2a", middle)
            for letter, count in zip("bcd", (2, 3, 4), strict=True):
                for index in range(count):
                    light(f"{name}.conv2{letter}.{index}", middle)
            weights.conv(f"{name}.gate.fc1", middle, middle // 16, 1, bias=True)
            weights.conv(f"{name}.gate.fc2", middle // 16, middle, 1, bias=True)
            conv(f"{name}.conv3", middle, outputs)
            if block == 0 and inputs != outputs:
                conv(f"{name}.downsample", inputs, outputs)
        if stage < 4:
            conv(f"conv{stage}.2.0", outputs, outputs)
    conv("conv5", channels[-1], channels[-1])
    weights.linear("fc.0", channels[-1], size)
    weights.batch_norm("fc.1", size)
    weights.linear("classifier", size, 7)
    return weights


def osnet_feature(weights, pixels):
    def conv(name, x, relu=True, **options):
        x = weights.run_batch_norm(f"{name}.bn", weights.run_conv(f"{name}.conv", x, **options))
        return x.relu() if relu else x

    def light(name, x):
        x = weights.run_conv(f"{name}.conv1", x)
        x = weights.run_conv(f"{name}.conv2", x, padding=1, groups=x.shape[1])
        return weights.run_batch_norm(f"{name}.bn", x).relu()

    def gated(name, x):
        gate = weights.run_conv(f"{name}.fc1", x.mean((2, 3), keepdim=True)).relu()
        return x * weights.run_conv(f"{name}.fc2", gate).sigmoid()

    x = F.max_pool2d(conv("conv1", pixels, stride=2, padding=3), 3, 2, 1)
    for stage in (2, 3, 4):
        for block in range(2):
            name = f"conv{stage}.{block}"
            inner = conv(f"{name}.conv1", x)
            streams = [light(f"{name}.conv2a", inner)]
            for letter, count in zip("bcd", (2, 3, 4), strict=True):
                stream = inner
                for index in range(count):
                    stream = light(f"{name}.conv2{letter}.{index}", stream)
                streams.append(stream)
            inner = conv(f"{name}.conv3", sum(gated(f"{name}.gate", stream) for stream in streams), relu=False)
            shortcut = f"{name}.downsample"
            x = (inner + (conv(shortcut, x, relu=False) if f"{shortcut}.conv.weight" in weights else x)).relu()
        if stage < 4:
            x = F.avg_pool2d(conv(f"conv{stage}.2.0", x), 2)
    x = weights.run_linear("fc.0", conv("conv5", x).mean((2, 3)))
    return weights.run_batch_norm("fc.1", x).relu()


# ---- Swin --------------------------------------------------------------------------------------------------------


def fast_reid_weights(width=8, blocks=(1, 2, 3, 1), non_local=(0, 2, 3, 0), ibn=False):
    weights, inputs = Weights(), width
    weights.conv("backbone.conv1", 3, width, 7)
    weights.batch_norm("backbone.bn1", width)
    for stage, count in enumerate(blocks):
        middle = width * 2**stage
        for block in range(count):
            name = f"backbone.layer{stage + 1}.{block}"
            weights.conv(f"{name}.conv1", inputs, middle, 1)
            if ibn and stage < 3:
                weights.norm(f"{name}.bn1.IN", middle // 2)
                weights.batch_norm(f"{name}.bn1.BN", middle - middle // 2)
            else:
                weights.batch_norm(f"{name}.bn1", middle)
            weights.conv(f"{name}.conv2", middle, middle, 3)
            weights.batch_norm(f"{name}.bn2", middle)
            weights.conv(f"{name}.conv3", middle, 4 * middle, 1)
            weights.batch_norm(f"{name}.bn3", 4 * middle)
            if block == 0:
                weights.conv(f"{name}.downsample.0", inputs, 4 * middle, 1)
                weights.batch_norm(f"{name}.downsample.1", 4 * middle)
            inputs = 4 * middle
        for index in range(non_local[stage]):
            name = f"backbone.NL_{stage + 1}.{index}"
            for part in ("g", "theta", "phi"):
                weights.conv(f"{name}.{part}", inputs, 1, 1, bias=True)
            weights.conv(f"{name}.W.0", 1, inputs, 1, bias=True)
            weights.batch_norm(f"{name}.W.1", inputs)
    weights["heads.pool_layer.p"] = torch.tensor([2.6])
    weights.batch_norm("heads.bottleneck.0", inputs, bias=False)
    weights.add("heads.weight", 7, inputs)
    weights["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).reshape(1, 3, 1, 1)
    return weights


def fast_reid_feature(weights, pixels, blocks=(1, 2, 3, 1), non_local=(0, 2, 3, 0), ibn=False):
    def first_norm(name, x):
        if not ibn or "layer4" in name:
            return weights.run_batch_norm(name, x)
        half = x.shape[1] // 2
        instance = F.instance_norm(x[:, :half], weight=weights[f"{name}.IN.weight"], bias=weights[f"{name}.IN.bias"])
        return torch.cat([instance, weights.run_batch_norm(f"{name}.BN", x[:, half:])], 1)

    x = weights.run_batch_norm("backbone.bn1", weights.run_conv("backbone.conv1", pixels, stride=2, padding=3))
    x = F.max_pool2d(x.relu(), 3, 2, ceil_mode=True)
    for stage, count in enumerate(blocks):
        for block in range(count):
            name = f"backbone.layer{stage + 1}.{block}"
            stride = 2 if block == 0 and stage in (1, 2) else 1
            inner = first_norm(f"{name}.bn1", weights.run_conv(f"{name}.conv1", x)).relu()
            inner = weights.run_conv(f"{name}.conv2", inner, stride=stride, padding=1)
            inner = weights.run_batch_norm(f"{name}.bn2", inner).relu()
            inner = weights.run_batch_norm(f"{name}.bn3", weights.run_conv(f"{name}.conv3", inner))
            if block == 0:
                x = weights.run_conv(f"{name}.downsample.0", x, stride=stride)
                x = weights.run_batch_norm(f"{name}.downsample.1", x)
            x = (inner + x).relu()
            number = block - (count - non_local[stage])
            if number >= 0:
                name = f"backbone.NL_{stage + 1}.{number}"
                g, theta, phi = (
                    weights.run_conv(f"{name}.{part}", x)[:, 0].flatten(1) for part in ("g", "theta", "phi")
                )
                mean = (theta[:, :, None] * phi[:, None] * g[:, None]).sum(2) / g.shape[1]
                mean = mean.reshape(len(x), 1, *x.shape[2:])
                x = x + weights.run_batch_norm(f"{name}.W.1", weights.run_conv(f"{name}.W.0", mean))
    p = weights["heads.pool_layer.p"]
    pooled = x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
    return weights.run_batch_norm("heads.bottleneck.0", pooled)
