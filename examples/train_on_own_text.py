"""Trains a small T6 on your own text, then continues a prompt.

usage: python -m examples.train_on_own_text TEXT WORKDIR [STEPS]

TEXT is a text file or a folder. The same from the command line:
python train.py --config=configs/quickstart.py --workdir=WORKDIR --config.data.source=TEXT
"""

import pathlib
import sys

import t6jax
from configs import quickstart
from t6jax.config import RunConfig
from t6jax.training.loop import train


def main(source: str, workdir: pathlib.Path, steps: int = 500, prompt: str = "The ") -> str:
    """Trains for so many steps in workdir and returns the continued prompt."""
    config = quickstart.get_config()
    config.data.source = source
    config.steps = steps
    config.optimizer.warmup_steps = steps // 10
    train(RunConfig.from_dict(config.to_dict()), workdir)  # resumes if workdir holds a run

    model, _ = t6jax.load(workdir)
    tokenizer = t6jax.load_tokenizer(workdir)
    (new,) = t6jax.generate(
        model, [prompt], max_new_tokens=60, tokenizer=tokenizer, temperature=0.8
    )
    text = prompt + new
    print(text)
    return text


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:]))
