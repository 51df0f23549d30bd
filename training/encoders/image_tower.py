"""`conv32`, a small convolutional image tower for 32 × 32 pictures, and smaller ones of its kind.

The architecture is that of Keller Jordan's airbench (https://arxiv.org/abs/2404.00498): a frozen 2 × 2 whitening
convolution, three blocks of two 3 × 3 convolutions, a global max-pool and a linear projection. It is fully
convolutional and so takes smaller pictures as well.

Importing this module registers the towers with timm. They have timm's interface: `timm.create_model("conv32",
num_classes=d)` makes one, and any other timm model can stand in its place.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

WHITEN_EPS = 5e-4  # added to the patches' variances, so that the faintest directions are not blown up


class _Block(nn.Module):
    """(b, c_in, h, w) → (b, c_out, h/2, w/2)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.norm1 = _norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = _norm(c_out)
        for conv in (self.conv1, self.conv2):  # the first c_in filters pass their input on
            nn.init.dirac_(conv.weight.data[: conv.weight.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.4)
    norm.weight.requires_grad = False  # its scale is redundant with the next convolution's
    return norm


class Conv32(nn.Module):
    """Normalised pictures (b, 3, h, w) → (b, num_classes), or the pooled features where `num_classes` is 0.

    widths: channels of the three blocks. in_chans: channels of the pictures.
    """

    def __init__(self, widths: tuple[int, int, int] = (128, 384, 384), num_classes: int = 256, in_chans: int = 3):
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1]
        self.whiten = nn.Conv2d(in_chans, 2 * in_chans * 4, 2)
        self.whiten.weight.requires_grad = False
        assert self.whiten.bias is not None
        nn.init.zeros_(self.whiten.bias)
        channels = (self.whiten.out_channels, *widths)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(channels)))
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the projection by a new one to `num_classes` dimensions, or by none (0)."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, bias=False) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised pictures (b, 3, h, w) → features (b, widths[-1], h', w')."""
        return self.blocks(F.gelu(self.whiten(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → (b, num_classes); before the projection (b, widths[-1]) where `pre_logits`."""
        x = x.amax(dim=(2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.no_grad()
    def init_whitening(self, x: Tensor) -> None:
        """Sets the first layer from normalised training pictures x (n, 3, h, w).

        Its filters become the eigenvectors of the covariance of 2 × 2 patches, each scaled to give variance one, and
        their negatives (airbench).
        """
        c, h, w = self.whiten.in_channels, *self.whiten.kernel_size
        patches = x.unfold(2, h, 1).unfold(3, w, 1).transpose(1, 3).reshape(-1, c, h, w).float()
        flat = patches.flatten(1)
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        rows = (vectors / (values + WHITEN_EPS).sqrt()).T.reshape(-1, c, h, w).flip(0)
        self.whiten.weight.copy_(torch.cat([rows, -rows]))


def _make(widths: tuple[int, int, int], pretrained: bool, kwargs: dict[str, Any]) -> Conv32:
    if pretrained:
        raise ValueError("conv32 has no weights at timm: it is trained by `sparsight train`")
    known = {k: v for k, v in kwargs.items() if k in {"num_classes", "in_chans"}}
    return Conv32(widths, **known)


@register_model
def conv32(pretrained: bool = False, **kwargs: Any) -> Conv32:
    """The bundled encoder's tower, of 4.7 million parameters; its weights come with the encoder, not from timm."""
    return _make((128, 384, 384), pretrained, kwargs)


@register_model
def conv32_small(pretrained: bool = False, **kwargs: Any) -> Conv32:
    """A tower of 2 million parameters, which trains in half the time."""
    return _make((64, 256, 256), pretrained, kwargs)


@register_model
def conv32_tiny(pretrained: bool = False, **kwargs: Any) -> Conv32:
    """A tower of 0.1 million parameters, which trains in seconds: for tests and for trying settings."""
    return _make((16, 64, 64), pretrained, kwargs)
