"""What the paper's four classification experiments share."""

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
    config = default_config()
    config.epochs = 110
    config.batch_size = 100
    config.model.name = model
    config.optimizer.name = "amsgrad_torch"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.boundaries = (40, 80)
    config.optimizer.decay = 0.1
    config.freeze.rule = "kde_otsu"
    config.freeze.start_epoch = 3
    config.dataset.name = dataset
    return config
