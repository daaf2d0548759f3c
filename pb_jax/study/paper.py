"""What the paper reports (tables 1 and 2, sections 3 and 4), to put measurements beside."""

from typing import NamedTuple


class Paper(NamedTuple):
    """Of one network; shares and accuracies from 0 to 1.

    Attributes:
        dataset: its name in `pb_jax.data`.
        threshold: t.
        full: accuracy of full training.
        frozen_accuracy: accuracy of partial backpropagation: the run shown, and the mean of three.
        frozen: share of the weights, likewise.
        zeros: share of zero gradients in full training; None where the paper gives none.
    """

    dataset: str
    threshold: float
    full: float
    frozen_accuracy: tuple[float, float]
    frozen: tuple[float, float]
    zeros: float | None = None


PAPER = {
    "vgg19": Paper("cifar10", 0.04, 0.8812, (0.8788, 0.8770), (0.7968, 0.8045), zeros=0.094),
    "resnet110": Paper("cifar10", 0.19, 0.8372, (0.8281, 0.8283), (0.4985, 0.5153)),
    "densenet121": Paper("cifar10", 0.45, 0.8820, (0.8763, 0.8752), (0.6907, 0.6933)),
    "lenet5": Paper("mnist", 0.50, 0.9925, (0.9922, 0.9922), (0.9370, 0.9236), zeros=0.318),
}
"""By the name of the network in `models`. All are of 110 epochs."""

EPOCHS = 110

_NAMES = {
    "captioner": "captioner",
    "cifar10": "CIFAR-10",
    "densenet121": "DenseNet-121",
    "digits": "digits",
    "fashion_mnist": "Fashion-MNIST",
    "flickr8k": "Flickr8k",
    "lenet5": "LeNet-5",
    "mnist": "MNIST",
    "resnet110": "ResNet-110",
    "vgg19": "VGG19",
}


def title(network: str, dataset: str) -> str:
    """Network and data as people call them.

    Example:
        >>> title("lenet5", "digits"), title("mine", "mnist")
        ('LeNet-5, digits', 'mine, MNIST')
    """
    return ", ".join(_NAMES.get(name, name) for name in (network, dataset))
