"""Figures of a run, from the files in its folder alone.

`write_figures(DIR)`, or `python -m pb_jax.reports figures DIR...`, writes into `DIR/figures/`:

| file | shows |
| --- | --- |
| `curves.png` | loss and accuracy over the epochs, and when weights were frozen (the paper's \
figure 3) |
| `layer_gradients_step_N.png` | gradients of four layers when a mask was made (the paper's \
figure 2) |
| `gradients_step_N.png` | gradients of all weights; where the rule estimates one, their density, \
region, sub-ranges and threshold |
| `frozen_share_step_N.png` | frozen share of each layer, by kernels, biases and batch norm |

`N` is the update that made the mask. Where a run made several, `layer_gradients` shows the first.
The files that are read are described in `pb_jax.training`.

`python -m pb_jax.reports DIR...` makes one page of HTML about a run, or several beside one another:
`pb_jax.reports.page`. `python -m pb_jax.reports bleu NAME=DIR...` draws the BLEU scores of several
captioners (the paper's figure 5), `caption.py` what one looks at for each word (its figure 4):
`pb_jax.reports.captions`.
"""

import os
from pathlib import Path

from pb_jax.errors import UserError

__all__ = ["write_figures"]


def write_figures(workdir: str | os.PathLike[str]) -> list[Path]:
    """Draw the figures of a run, finished or not, and write them into its folder.

    Args:
        workdir: with `config.json`, `metrics.jsonl` and, where masks were made, `mask_step_*.npz`.

    Returns:
        The files written, in the order of the table above; existing ones are replaced.

    Raises:
        UserError: a file is missing or damaged, or `workdir/figures` cannot be written.
    """
    from pb_jax.reports import curves, frozen_share, gradients  # matplotlib: not at import
    from pb_jax.reports.run_folder import read_run
    from pb_jax.reports.style import save

    run = read_run(Path(workdir))
    folder = Path(workdir) / "figures"
    try:
        folder.mkdir(exist_ok=True)
        written = [save(curves.draw(run), folder / "curves.png")]
        for number, mask in enumerate(run.masks):
            if number == 0:
                path = folder / f"layer_gradients_step_{mask.step}.png"
                written.append(save(gradients.draw_layers(run, mask), path))
            path = folder / f"gradients_step_{mask.step}.png"
            written.append(save(gradients.draw_all(run, mask), path))
            path = folder / f"frozen_share_step_{mask.step}.png"
            written.append(save(frozen_share.draw(run, mask), path))
    except OSError as error:
        raise UserError(f"cannot write figures into {folder}: {error.strerror}") from error
    return written
