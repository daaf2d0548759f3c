"""BLEU of generated captions against all their references."""

from collections.abc import Sequence
from typing import Any


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU-1 to BLEU-4, by sacrebleu.

    The plain definition: n-grams clipped by the reference that has most of them and counted over
    the whole corpus, geometric mean of the precisions of 1 to n, brevity penalty by the reference
    that is closest in length, no smoothing (a precision of 0 makes a BLEU of 0), no tokenizer:
    words are what white space separates.

    Args:
        hypotheses: a generated caption for each image; may be empty strings.
        references: for each image its true captions, at least one, not always equally many.

    Returns:
        `bleu1` to `bleu4`, from 0 to 1.

    Raises:
        ValueError: there is nothing to score, an image has no reference, or the numbers differ.

    Source:
        Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation".

    Example:
        >>> scores = corpus_bleu(["a dog runs fast"], [["a dog runs", "the dog is fast"]])
        >>> {name: round(score, 3) for name, score in scores.items()}
        {'bleu1': 1.0, 'bleu2': 0.816, 'bleu3': 0.693, 'bleu4': 0.0}
    """
    from sacrebleu.metrics.bleu import BLEU  # with its tokenizers: not at import

    if isinstance(hypotheses, str) or not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"hypotheses and references must be equally many and at least one, got "
            f"{len(hypotheses)} and {len(references)}"
        )
    for position, captions in enumerate(references):
        if isinstance(captions, str) or not captions:
            raise ValueError(f"references[{position}] must be captions, got {captions!r}")
    most = max(map(len, references))
    # sacrebleu wants the first reference of every image, then the second ...; None: there is none.
    streams: Any = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    counted = metric.corpus_score(hypotheses, streams)
    scores = {}
    for order in range(1, 5):
        score = BLEU.compute_bleu(
            counted.counts[:order],
            counted.totals[:order],
            counted.sys_len,
            counted.ref_len,
            smooth_method="none",
            max_ngram_order=order,
        )
        scores[f"bleu{order}"] = min(score.score / 100, 1.0)  # rounding may lead above 1
    return scores
