"""Mobile-Former, arXiv 2108.05895: a convolutional network, a transformer over a few tokens beside it, and bridges both ways.

Where the paper leaves something open, this is the network of the authors' released weights, and its parameters have their names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .network import FeatureInfo, check_classes, check_numbers


@dataclass(frozen=True)
class MobileFormerConfig:
    """What makes one Mobile-Former differ from another (paper, appendix).

    blocks: (stride, widest channels, channels of the output) of each; the first is a `LiteBlock`.
    """

    num_tokens: int
    token_dim: int
    stem_channels: int
    blocks: tuple[tuple[int, int, int], ...]
    classifier_dim: int  # width of the last layer before the classifier
    groups: int = 1  # of the 1x1 convolutions on the map
    drop_rate: float = 0.2  # dropout before the classifier; the authors used 0.1 to 0.3
    in_chans: int = 3

    def __post_init__(self) -> None:
        positive = ("num_tokens", "token_dim", "stem_channels", "classifier_dim", "groups", "in_chans")
        check_numbers(self, positive=positive, rates=("drop_rate",))
        if self.token_dim % FORMER_HEADS:
            raise ValueError(f"MobileFormerConfig: expected token_dim to be a multiple of {FORMER_HEADS} heads, got {self.token_dim}")
        if len(self.blocks) < 2 or not all(len(b) == 3 and b[0] in (1, 2) and min(b) > 0 for b in self.blocks):
            raise ValueError(f"MobileFormerConfig: expected at least 2 blocks (1 or 2, hidden, channels), got {self.blocks}")
        inputs = (self.stem_channels, *(channels for _, _, channels in self.blocks))
        for index, (stride, hidden, channels) in enumerate(self.blocks):
            # A block that begins with a depthwise convolution has as many filters for each channel of its input.
            hidden_unit = inputs[index] if index == 0 or stride == 2 else self.groups
            unit = math.lcm(BRIDGE_HEADS, self.groups)
            if hidden % hidden_unit or hidden % self.groups or channels % unit:
                expected = f"hidden channels that divide by {hidden_unit} and {self.groups}, and channels that divide by {unit}"
                raise ValueError(f"MobileFormerConfig: expected block {index} to have {expected}, got {hidden} and {channels}")


BRIDGE_HEADS = 2
FORMER_HEADS = 4

_SMALL = ((2, 24, 12), (1, 36, 12), (2, 72, 24), (1, 72, 24), (2, 144, 48), (1, 192, 48), (1, 288, 64), (2, 384, 96), (1, 576, 96))
VARIANTS = {
    "mobile_former_26m": MobileFormerConfig(num_tokens=3, token_dim=128, stem_channels=8, blocks=_SMALL, classifier_dim=1024, groups=4),
    "mobile_former_52m": MobileFormerConfig(num_tokens=3, token_dim=128, stem_channels=8, blocks=_SMALL, classifier_dim=1024),
    "mobile_former_96m": MobileFormerConfig(
        num_tokens=4,
        token_dim=128,
        stem_channels=12,
        blocks=(
            *((1, 24, 12), (2, 72, 16), (2, 96, 32), (1, 96, 32), (2, 192, 64), (1, 256, 64), (1, 384, 88), (2, 528, 128)),
            (1, 768, 128),
        ),
        classifier_dim=1280,
    ),
    "mobile_former_151m": MobileFormerConfig(
        num_tokens=6,
        token_dim=192,
        stem_channels=12,
        blocks=(
            *((1, 24, 12), (2, 72, 16), (1, 48, 16), (2, 96, 32), (1, 96, 32), (2, 192, 64), (1, 256, 64), (1, 384, 88)),
            *((1, 528, 88), (2, 528, 128), (1, 768, 128), (1, 768, 128)),
        ),
        classifier_dim=1280,
    ),
    "mobile_former_214m": MobileFormerConfig(
        num_tokens=6,
        token_dim=192,
        stem_channels=12,
        blocks=(
            *((1, 24, 12), (2, 72, 20), (1, 60, 20), (2, 120, 40), (1, 160, 40), (2, 240, 80), (1, 320, 80), (1, 480, 112)),
            *((1, 672, 112), (2, 672, 160), (1, 960, 160), (1, 960, 160)),
        ),
        classifier_dim=1600,
    ),
    "mobile_former_294m": MobileFormerConfig(
        num_tokens=6,
        token_dim=192,
        stem_channels=16,
        blocks=(
            *((1, 32, 16), (2, 96, 24), (1, 96, 24), (2, 144, 48), (1, 192, 48), (2, 288, 96), (1, 384, 96), (1, 576, 128)),
            *((1, 768, 128), (2, 768, 192), (1, 1152, 192), (1, 1152, 192)),
        ),
        classifier_dim=1920,
    ),
    "mobile_former_508m": MobileFormerConfig(
        num_tokens=6,
        token_dim=192,
        stem_channels=24,
        blocks=(
            *((1, 48, 24), (2, 144, 40), (1, 120, 40), (2, 240, 72), (1, 216, 72), (2, 432, 128), (1, 512, 128), (1, 768, 176)),
            *((1, 1056, 176), (2, 1056, 240), (1, 1440, 240), (1, 1440, 240)),
        ),
        classifier_dim=1920,
    ),
}


class DynamicReLU(nn.Module):
    """max(a x, b x), whose slopes a and b the first token sets for each image and channel (arXiv 2003.10027, without intercepts).

    Map (B, C, H, W) and token (B, D) -> (B, C, H, W). a is in [0, 2] and b in [-1, 1]; a layer that gives zeros makes them 1 and
    0, which is ReLU.
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.hyper = nn.Sequential(
            nn.Linear(token_dim, token_dim // 4), nn.ReLU(), nn.Linear(token_dim // 4, 2 * channels), nn.Hardsigmoid()
        )

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        a, b = self.hyper(token)[..., None, None].chunk(2, dim=1)
        return torch.maximum(2 * a * x, (2 * b - 1) * x)


class MobileToFormer(nn.Module):
    """The tokens look at the map: attention whose keys and values are its pixels as they are, behind a gate; then LayerNorm.

    Tokens (B, T, D) and map (B, C, H, W) -> tokens (B, T, D).
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.alpha = nn.Sequential(nn.Linear(token_dim, channels), nn.Hardsigmoid())
        self.q = nn.Linear(token_dim, channels)
        self.proj = nn.Linear(channels, token_dim)
        self.layer_norm = nn.LayerNorm(token_dim)

    def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        seen = _attend(self.q(tokens), pixels, pixels, BRIDGE_HEADS)
        return self.layer_norm(tokens + self.proj(seen * (2 * self.alpha(tokens))))


class Former(nn.Module):
    """A transformer layer over the tokens, post-norm, whose attention takes them as keys and values as they are.

    (B, T, D) -> (B, T, D)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.channel_mlp = nn.Linear(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.layer_norm(tokens + self.channel_mlp(_attend(self.q(tokens), tokens, tokens, FORMER_HEADS)))
        return self.ffn_norm(tokens + self.ffn(tokens))


class FormerToMobile(nn.Module):
    """The pixels look at the tokens: attention whose queries are the pixels as they are, added to them.

    Map (B, C, H, W) and tokens (B, T, D) -> map (B, C, H, W).
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.k = nn.Linear(token_dim, channels)
        self.proj = nn.Linear(token_dim, channels)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        told = _attend(pixels, self.k(tokens), self.proj(tokens), BRIDGE_HEADS)
        return x + told.transpose(1, 2).unflatten(2, x.shape[2:])


class Stem(nn.Sequential):
    """A 3x3 convolution that halves the image. (B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(*_conv_norm(in_channels, out_channels, 3, stride=2), nn.ReLU6())


class LiteBlock(nn.Module):
    """A depthwise 3x3 widens, a linear 1x1 narrows; no tokens. (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *_conv_norm(in_channels, hidden, 3, stride=stride, groups=in_channels),
            nn.ReLU6(),
            _shuffle(in_channels, groups),
            *_conv_norm(hidden, out_channels, groups=groups),
        )
        self.stride = stride
        self.has_skip = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return x + y if self.has_skip else y


class MobileFormerBlock(nn.Module):
    """Map and tokens -> map and tokens: the tokens see the map, and each other; the map is filtered, and sees the tokens.

    (B, C_in, H, W), (B, T, D) -> (B, C_out, ceil(H / stride), ceil(W / stride)), (B, T, D)
    """

    stride: int

    def add_former(self, in_channels: int, out_channels: int, token_dim: int) -> None:
        """The tokens' part. It comes behind the convolutions, so that parameters have the order of the released weights."""
        self.local_global = MobileToFormer(in_channels, token_dim)
        self.global_block = Former(token_dim)
        self.global_local = FormerToMobile(out_channels, token_dim)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.global_block(self.local_global(tokens, x))
        return self.global_local(self.mobile(x, tokens[:, 0]), tokens), tokens

    def mobile(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The convolutions, whose activations the first token steers."""
        raise NotImplementedError


class InvertedBlock(MobileFormerBlock):
    """An inverted residual with dynamic ReLUs: a 1x1 widens, a 3x3 filters each channel, a linear 1x1 narrows."""

    stride = 1

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, token_dim: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_norm(in_channels, hidden, groups=groups), _shuffle(groups, groups))
        self.hyper1 = DynamicReLU(hidden, token_dim)
        self.conv2 = nn.Sequential(*_conv_norm(hidden, hidden, 3, groups=hidden))
        self.hyper2 = DynamicReLU(hidden, token_dim)
        self.conv3 = nn.Sequential(*_conv_norm(hidden, out_channels, groups=groups), _shuffle(groups, groups))
        self.has_skip = in_channels == out_channels
        self.add_former(in_channels, out_channels, token_dim)

    def mobile(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        y = self.hyper1(self.conv1(x), token)
        y = self.conv3(self.hyper2(self.conv2(y), token))
        return x + y if self.has_skip else y


class DownsamplingBlock(MobileFormerBlock):
    """Two `LiteBlock`s with dynamic ReLUs, of which the first halves the map and the second is added to what the first gives."""

    stride = 2

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, token_dim: int, groups: int) -> None:
        super().__init__()
        hidden2 = 4 * out_channels
        self.conv1 = nn.Sequential(*_conv_norm(in_channels, hidden, 3, stride=2, groups=in_channels), _shuffle(in_channels, groups))
        self.hyper1 = DynamicReLU(hidden, token_dim)
        self.conv2 = nn.Sequential(*_conv_norm(hidden, out_channels, groups=groups))
        self.conv3 = nn.Sequential(*_conv_norm(out_channels, hidden2, 3, groups=out_channels), _shuffle(out_channels, groups))
        self.hyper3 = DynamicReLU(hidden2, token_dim)
        self.conv4 = nn.Sequential(*_conv_norm(hidden2, out_channels, groups=groups))
        self.add_former(in_channels, out_channels, token_dim)

    def mobile(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.hyper1(self.conv1(x), token))
        return y + self.conv4(self.hyper3(self.conv3(y), token))


class MobileFormerHead(nn.Module):
    """Last map (B, C, H, W) and first token (B, D) -> logits, or the features (B, classifier_dim) where `num_classes` is 0."""

    def __init__(self, channels: int, token_dim: int, hidden: int, num_classes: int, *, groups: int, drop_rate: float) -> None:
        super().__init__()
        wide = 6 * channels
        self.conv = nn.Sequential(_shuffle(groups, groups), *_conv_norm(channels, wide, groups=groups), nn.ReLU6())
        self.fc = nn.Sequential(nn.Linear(wide + token_dim, hidden), nn.BatchNorm1d(hidden), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(hidden, num_classes) if num_classes else nn.Identity())

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        pooled = F.hardswish(self.conv(x).mean(dim=(2, 3)))
        return self.classifier(self.fc(torch.cat((pooled, token), dim=1)))


class MobileFormer(nn.Module):
    """Images (B, in_chans, H, W), normalised by mean and deviation of ImageNet -> logits (B, num_classes).

    `num_classes=0` gives the features (B, classifier_dim) that the classifier sees; `features_only=True` the list of the maps that
    `feature_info` describes, the last at each resolution, and there is no head. In training, the head's BatchNorm needs more
    than one image.
    """

    def __init__(self, config: MobileFormerConfig, *, num_classes: int = 1000, features_only: bool = False) -> None:
        super().__init__()
        check_classes(self, num_classes)
        self.config = config
        self.tokens = nn.Embedding(config.num_tokens, config.token_dim)
        self.stem = Stem(config.in_chans, config.stem_channels)

        levels = [config.stem_channels]  # channels of each map of the pyramid
        self.features = nn.ModuleList()
        for index, (stride, hidden, channels) in enumerate(config.blocks):
            before = config.blocks[index - 1][2] if index else config.stem_channels
            if index == 0:
                self.features.append(LiteBlock(before, hidden, channels, stride=stride, groups=config.groups))
            else:
                kind = DownsamplingBlock if stride == 2 else InvertedBlock
                self.features.append(kind(before, hidden, channels, token_dim=config.token_dim, groups=config.groups))
            levels = [*levels, channels] if stride == 2 else [*levels[:-1], channels]
        self.feature_info = FeatureInfo(tuple(levels), tuple(2 ** (level + 1) for level in range(len(levels))))

        self.local_global = self.classifier = None
        if not features_only:
            self.local_global = MobileToFormer(levels[-1], config.token_dim)
            self.classifier = MobileFormerHead(
                levels[-1], config.token_dim, config.classifier_dim, num_classes, groups=config.groups, drop_rate=config.drop_rate
            )
        self.apply(_init_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        if x.ndim != 4 or x.shape[1] != self.config.in_chans:
            raise ValueError(f"MobileFormer: expected images (B, {self.config.in_chans}, H, W), got {tuple(x.shape)}")
        features, tokens = self.forward_features(x)
        if self.local_global is None or self.classifier is None:
            return features
        tokens = self.local_global(tokens, features[-1])
        return self.classifier(features[-1], tokens[:, 0])

    def forward_features(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The maps of the pyramid, finest first, and the tokens (B, T, D)."""
        tokens = self.tokens.weight[None]  # the same for all images; the first block makes them differ
        x = self.stem(x)
        features = [x]
        for block in self.features:
            if isinstance(block, LiteBlock):
                x = block(x)
            else:
                x, tokens = block(x, tokens)
            features = [*features, x] if block.stride == 2 else [*features[:-1], x]
        return features, tokens


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax attention, each head on its slice of the channels. (B, N, C), (B, M, C), (B, M, C) -> (B, N, C).

    The query may be one for all images, (1, N, C).
    """
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    return (scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2)


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def _shuffle(mixed: int, groups: int) -> nn.Module:
    """Deal `mixed` runs of channels out in turn, so that the next 1x1 mixes them; only where the 1x1s have groups."""
    return nn.ChannelShuffle(mixed) if groups > 1 else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    # BatchNorm and LayerNorm already start as the identity, and the tokens as a normal distribution.
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
