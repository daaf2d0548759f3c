"""What the paper's experiments share."""

from typing import Any

from pb_jax.training import default_config


def paper(model: str, dataset: str) -> Any:
    """The paper's training: 110 epochs of batches of 100, a mask with the third epoch.

    AMSGrad (PyTorch's) with learning rate 1e-3, a tenth of it after 40 epochs and again after 80;
    no augmentation, no weight decay, no dropout. The mask is made by the paper's rule with this
    project's defaults for what the paper leaves open (see `pb_jax.kde_otsu`).

    Args:
        model: a network of `models`.
        dataset: of `pb_jax.data`.

    Returns:
        A locked configuration; `pb_jax.training.KEYS` says what each key means.
    """
    config = default_config(model)
    config.epochs = 110
    config.batch_size = 100
    config.optimizer.name = "amsgrad_torch"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.boundaries = (40, 80)
    config.optimizer.decay = 0.1
    config.freeze.rule = "kde_otsu"
    config.freeze.start_epoch = 3
    config.dataset.name = dataset
    return config


def paper_captioner(dataset: str) -> Any:
    """The training of the paper's captioner: at most 15 epochs of batches of 60 captions.

    Adam with learning rate 5e-4, x 0.8 after every 3 epochs without a better BLEU-4 of the
    validation split, and the end after 10. The mask is made as in `paper`.

    Args:
        dataset: of `pb_jax.data`, with captions.

    Source:
        The paper, section 4.2; dropout and the doubly stochastic regularisation are Xu et al.'s.
    """
    config = default_config("captioner")
    config.epochs = 15
    config.batch_size = 60
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.decay = 0.8
    config.optimizer.patience = 3
    config.optimizer.stop_patience = 10
    config.freeze.rule = "kde_otsu"
    config.freeze.start_epoch = 3
    config.dataset.name = dataset
    return config
