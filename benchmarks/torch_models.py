"""The four networks in PyTorch, named as in the repositories that `models.load_torch` reads."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class LeNet5(nn.Module):
    """Channels 8 and 32, dense layers 120, 84 and 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5)
        self.conv2 = nn.Conv2d(8, 32, 5)
        self.fc1 = nn.Linear(512, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (N, 1, 28, 28)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class VGG19(nn.Module):
    """Sixteen convolutions with batch norm, one dense layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in ([64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4):
            for outputs in stage:
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (N, 3, 32, 32)."""
        return self.classifier(self.features(x).flatten(1))


class Block(nn.Module):
    """Two convolutions beside an option-A shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.added = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + x)


class ResNet110(nn.Module):
    """Three stages of eighteen blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(18)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(17)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(17)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution, concatenated with their input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 48, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(48)
        self.conv2 = nn.Conv2d(48, 12, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """New channels first, then the input."""
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([y, x], 1)


class Transition(nn.Module):
    """A 1 x 1 convolution and average pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half the size."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet121(nn.Module):
    """Four dense blocks, growth 12."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        width = 24
        for stage, length in enumerate((6, 12, 24, 16), 1):
            block = [Bottleneck(width + 12 * i) for i in range(length)]
            self.add_module(f"dense{stage}", nn.Sequential(*block))
            width += 12 * length
            if stage < 4:
                self.add_module(f"trans{stage}", Transition(width, width // 2))
                width //= 2
        self.bn = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (N, 3, H, W)."""
        x = self.conv1(x)
        for name in ("dense1", "trans1", "dense2", "trans2", "dense3", "trans3", "dense4"):
            x = self.get_submodule(name)(x)
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


NETWORKS: dict[str, Any] = {
    "lenet5": LeNet5,
    "vgg19": VGG19,
    "resnet110": ResNet110,
    "densenet121": DenseNet121,
}
