"""The log-likelihood of a whole text, by sliding windows.

Each token is predicted once, from as many of the tokens before it as the window holds.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from t6jax.evaluation.packing import Request
from t6jax.evaluation.progress import ProgressBar
from t6jax.evaluation.scoring import Scorer

WINDOWS = 4096  # that are packed together


def sliding_windows(
    tokens: Sequence[int], document_start: int, max_length: int, stride: int
) -> Iterator[Request]:
    """Yields requests whose continuations together are the text.

    The first continuation is the first max_length tokens; each later one is the next `stride`
    tokens. From the second window on, each token is predicted from at least the max_length - stride
    tokens before it.

    Args:
      tokens: the text.
      document_start: the token that starts a document; the first token is predicted from it.
      max_length: the input tokens of a window.
      stride: how far each window moves; at most max_length.
    """
    whole = [document_start, *tokens]
    begin = 1
    while begin < len(whole):
        end = min(begin + (max_length if begin == 1 else stride), len(whole))
        yield Request(whole[max(0, end - 1 - max_length) : begin], whole[begin:end])
        begin = end


def total_nats(scorer: Scorer, windows: Iterable[Request], tokens: int) -> float:
    """The negative log-likelihood of all windows together, in nats, with a progress bar.

    Args:
      scorer: scores the windows.
      windows: the windows.
      tokens: how many tokens they predict, for the progress bar.
    """
    nats = 0.0
    with ProgressBar(total=tokens, desc="bits/byte", unit=" tokens", unit_scale=True) as progress:
        for block in itertools.batched(windows, WINDOWS):
            for finished in scorer.stream(block):
                nats -= sum(score.log_likelihood for _, score in finished)
                progress.update(sum(len(block[i].continuation) for i, _ in finished))
    return nats
