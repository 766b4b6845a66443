"""The nats of a whole text, each token predicted once, from as much of what precedes it as a
sliding window holds.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from t6jax.evaluation.packing import Request
from t6jax.evaluation.scoring import Scorer
from t6jax.extras import needs

with needs("data"):
    from tqdm import tqdm

WINDOWS = 4096  # scored at a time


def sliding_windows(
    tokens: Sequence[int], document_start: int, max_length: int, stride: int
) -> Iterator[Request]:
    """Requests whose continuations are the text: the first max_length tokens of it, then `stride`
    at a time.

    A window has max_length input tokens, so from the second on each token sees at least the
    max_length - stride before it.
    """
    whole = [document_start, *tokens]
    begin = 1
    while begin < len(whole):
        end = min(begin + (max_length if begin == 1 else stride), len(whole))
        yield Request(whole[max(0, end - 1 - max_length) : begin], whole[begin:end])
        begin = end


def total_nats(scorer: Scorer, windows: Iterable[Request], tokens: int) -> float:
    """The negative log-likelihood of all windows together; tokens: how many they predict, for the
    progress shown.
    """
    nats = 0.0
    with tqdm(total=tokens, desc="bits a byte", unit=" tokens", unit_scale=True) as progress:
        for block in itertools.batched(windows, WINDOWS):
            for finished in scorer.stream(block):
                nats -= sum(score.log_likelihood for _, score in finished)
                progress.update(sum(len(block[i].continuation) for i, _ in finished))
    return nats
