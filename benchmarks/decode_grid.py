"""The sizes at which benchmarks.decode times one new token for each of B sequences."""

from collections.abc import Sequence

D = 64
PAPER = "TPA 16,1,1"  # R_Q, R_K, R_V of the paper's Figures 5, 7 and 8
PAPER_HEADS = (16, 32, 48)  # d_model 1024, 2048, 3072
TRAINED_HEADS = {"T6 small": 34, "T6 medium": 47, "T6 large": 61, "T6 XL": 78}
RANKS = {PAPER: (16, 1, 1)} | dict.fromkeys(TRAINED_HEADS, (6, 2, 2))
BATCHES, LENGTHS = (1, 2, 4, 8, 16), [2**i for i in range(12, 20)]
QUICK_BATCHES, QUICK_LENGTHS = (1, 16), [2**12, 2**14, 2**17, 2**19]
COMPILED_LENGTHS = QUICK_LENGTHS  # of kernels that compile anew for each length
TRAINED_LENGTHS, QUICK_TRAINED_LENGTHS = [2**12, 2**14, 2**17], [2**17]


def grid(
    quick: bool, paper_heads: Sequence[int] = PAPER_HEADS
) -> list[tuple[str, int, int, list[int]]]:
    """(name, heads, batch, lengths) of every FlashTPA case.

    Args:
        quick: A few sizes only.
        paper_heads: Head counts of the paper's figures; the trained models are timed with 32.
    """
    lengths = QUICK_LENGTHS if quick else LENGTHS
    paper = [
        (PAPER, heads, batch, lengths)
        for heads in paper_heads
        for batch in (QUICK_BATCHES if quick else BATCHES)
        if heads == 32 or not quick
    ]
    trained = [
        (name, heads, batch, QUICK_TRAINED_LENGTHS if quick else TRAINED_LENGTHS)
        for name, heads in TRAINED_HEADS.items()
        for batch in (1, 16)
    ]
    return paper + trained if 32 in paper_heads else paper
