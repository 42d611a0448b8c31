"""The peers of the zoo's nets: LeNet, CaffeNet, GoogLeNet and ResNet-50 as one would write them in torch by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions, each pooled, and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(True), nn.Linear(500, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self(x), label)


class CaffeNet(nn.Module):
    """Five convolutions and three dense layers."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, 96, 11, 4), nn.ReLU(True), pool(), norm),
            *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(True), pool(), norm),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(True)),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(True)),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(True), pool()),
        )
        self.classes = nn.Sequential(
            *(nn.Linear(9216, 4096), nn.ReLU(True), nn.Dropout(0.5)),
            *(nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(0.5)),
            nn.Linear(4096, 1000),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x).flatten(1))

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self(x), label)


def conv(inputs: int, outputs: int, kernel: int, **more: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **more), nn.ReLU(True))


class Inception(nn.Module):
    def __init__(self, inputs: int, one: int, r3: int, three: int, r5: int, five: int, project: int) -> None:
        super().__init__()
        self.one = conv(inputs, one, 1)
        self.three = nn.Sequential(conv(inputs, r3, 1), conv(r3, three, 3, padding=1))
        self.five = nn.Sequential(conv(inputs, r5, 1), conv(r5, five, 5, padding=2))
        self.project = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(inputs, project, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.project(x)], 1)


class Head(nn.Module):
    """One of the two auxiliary classifiers."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.AvgPool2d(5, 3), conv(inputs, 128, 1), nn.Flatten()),
            *(nn.Linear(2048, 1024), nn.ReLU(True), nn.Dropout(0.7), nn.Linear(1024, 1000)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GoogLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.stem = nn.Sequential(
            *(conv(3, 64, 7, stride=2, padding=3), pool(), norm),
            *(conv(64, 64, 1), conv(64, 192, 3, padding=1), norm, pool()),
        )
        self.three = nn.Sequential(
            Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64), pool()
        )
        self.four_a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.four_bcd = nn.Sequential(
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
        )
        self.rest = nn.Sequential(
            *(Inception(528, 256, 160, 320, 32, 128, 128), pool()),
            *(Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)),
            *(nn.AvgPool2d(7), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, 1000)),
        )
        self.first, self.second = Head(512), Head(528)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.four_bcd(self.four_a(self.three(self.stem(x)))))

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        a = self.four_a(self.three(self.stem(x)))
        d = self.four_bcd(a)
        heads = F.cross_entropy(self.first(a), label) + F.cross_entropy(self.second(d), label)
        return F.cross_entropy(self.rest(d), label) + 0.3 * heads


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.path = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
            *(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.short: nn.Module = nn.Identity()
        if inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.path(x) + self.short(x))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(True)]
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        inputs = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                width = 64 * 2**stage
                layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
                inputs = 4 * width
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(2048, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self(x), label)


PEERS = {"caffenet": (CaffeNet, 227), "googlenet": (GoogLeNet, 224), "resnet50": (ResNet50, 224)}
