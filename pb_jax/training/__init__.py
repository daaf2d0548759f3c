"""What `train.py` runs: optimizers, steps, the loop, checkpoints, metrics.

It knows no model and no dataset: `fit` takes a `Task`. `Classification` is one of any flax.nnx
module that maps images to logits and any two splits of uint8 images with labels; `Captioning` one
of a captioner and three splits of pictures with captions. It installs with
`pip install 'pb_jax[train]'`.

A run's folder holds:

- `config.json`: the resolved configuration (`resolve`), every default filled in.
- `metrics.jsonl`: a line an epoch. "val" is what the paper calls validation: the *test* split.

  | key | meaning |
  | --- | --- |
  | `epoch`, `step` | counted from 1; `step`: updates made by the end of the epoch |
  | `train_loss`, `train_accuracy` | means over the epoch's batches, as they were trained on |
  | `val_loss`, `val_accuracy` | of the whole test split, after the epoch |
  | `frozen_fraction` | share of the weights that the mask freezes at the end of the epoch |
  | `zero_gradient_fraction` | share of the gradients that are zero behind the mask, mean over the \
epoch's batches: the paper's frozen ratio |
  | `threshold` | t of the mask, in units of x = abs(gradient) / α; null: no mask, or one t a leaf |
  | `learning_rate` | of the epoch |
  | `examples_per_second` | of training, without evaluation |
  | `seconds` | with evaluation, without compiling and without the checkpoint |
  | `val_bleu1` to `val_bleu4` | of captioners: BLEU of generated captions, 0 to 1 |

  Captioners have a validation split of their own, which `val_` is of; their losses and accuracies
  are of the next word given the true words before it (teacher forcing).

- `summary.json`: final and best accuracy, the last mask's frozen share and threshold, number of
  parameters, seconds (the sum of the epochs'), versions. It is written when the run ends. Of
  captioners also `val_bleu1` to `val_bleu4` of the best epoch, and `test_bleu1` to `test_bleu4` of
  captions that its parameters give to the test split; these are in `test_captions.json`, the words
  in `vocabulary.json`, and the first test pictures with their captions and with what was looked at
  for each word in `test_attention.npz`: `names`, `pixels` uint8 (K, H, W, 3), `captions`, `alphas`
  (K, words, h * w), `grid` (h, w).
- `mask_step_{step}.npz`, one for each mask; `step` is the update that it was made in, from 1. Read
  it with `numpy.load(path, allow_pickle=False)`:

  | key | shape | meaning |
  | --- | --- | --- |
  | `step`, `epoch`, `learning_rate`, `frozen_fraction` | scalars | when; α; share of all weights |
  | `threshold` | scalar | of the mask (absent with `scope="leaf"`) |
  | `leaf_thresholds` | (leaves,) | with `scope="leaf"` |
  | `leaf_names`, `leaf_sizes` | (leaves,) | in the order in which the model defines them |
  | `leaf_frozen`, `leaf_zeros`, `leaf_nonfinite` | (leaves,) | numbers of weights, gradients |
  | `hist_edges` | (bins + 1,) | of x = abs(gradient) / α, equally spaced in log x |
  | `hist_counts` | (leaves, bins) | of finite x > 0; the end bins hold what lies beyond |
  | `region`, `bandwidth`, `grid`, `density`, `subrange_means`, `subrange_shares`, `num_total`, \
`num_zero`, `num_nonfinite` | see `pb_jax.ThresholdEstimate` | of rules that estimate a density |

- `checkpoints/EPOCH/` (orbax): the latest and the best; `checkpoints/base/`: the frozen weights of
  those that hold what trains only. See `docs/checkpoints.md`, `python -m pb_jax.checkpoints`.
- `tensorboard/`: the same numbers as `metrics.jsonl`. `figures/`: drawn from these files by
  `pb_jax.reports`.

Batch statistics are no parameters: they go on moving under a mask, as they do in the paper.
"""

from pb_jax.training import metrics, optimizers
from pb_jax.training.branch import check as check_start
from pb_jax.training.captioning import (
    SAMPLES,
    VOCABULARY,
    Captioning,
    Pictures,
    Samples,
    Search,
    captions_with_alphas,
)
from pb_jax.training.checkpoints import read_model
from pb_jax.training.classification import Classification
from pb_jax.training.config import (
    CAPTIONER,
    CAPTIONER_KEYS,
    KEYS,
    check_known,
    default_config,
    describe_keys,
    keys_of,
    resolve,
)
from pb_jax.training.factory import make_freezing, make_optimizer, make_rule
from pb_jax.training.freezing import Freezing
from pb_jax.training.loop import DivergedError, fit
from pb_jax.training.mesh import Placement
from pb_jax.training.plateau import Plateau
from pb_jax.training.processes import PeerError, connect, is_first, leave, on_first, peers_matter
from pb_jax.training.stopping import StoppedError
from pb_jax.training.task import Task
from pb_jax.training.workdir import exclusive, finished, settle

__all__ = [
    "CAPTIONER",
    "CAPTIONER_KEYS",
    "KEYS",
    "SAMPLES",
    "VOCABULARY",
    "Captioning",
    "Classification",
    "DivergedError",
    "Freezing",
    "PeerError",
    "Pictures",
    "Placement",
    "Plateau",
    "Samples",
    "Search",
    "StoppedError",
    "Task",
    "captions_with_alphas",
    "check_known",
    "check_start",
    "connect",
    "default_config",
    "describe_keys",
    "exclusive",
    "finished",
    "fit",
    "is_first",
    "keys_of",
    "leave",
    "make_freezing",
    "make_optimizer",
    "make_rule",
    "metrics",
    "on_first",
    "optimizers",
    "peers_matter",
    "read_model",
    "resolve",
    "settle",
]
