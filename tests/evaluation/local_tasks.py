"""Tasks of lm-evaluation-harness of each kind, on data written for the tests: a folder for
--include_path.
"""

import json
import pathlib
import random

import yaml

WORDS = (
    "the",
    "a",
    "red",
    "blue",
    "house",
    "tree",
    "river",
    "runs",
    "stands",
    "sleeps",
    "near",
    "under",
    "behind",
    "never",
)
NAMES = ("local_choice", "local_last_word", "local_text", "local_answer")


def write_tasks(folder: pathlib.Path, questions: int = 12) -> pathlib.Path:
    """The folder with local_choice (multiple choice), local_last_word (loglikelihood), local_text
    (loglikelihood_rolling) and local_answer (generate_until); those that have examples take them
    from other questions."""
    draw = random.Random(0)
    text = lambda low, high: " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))
    for split in ("train", "validation"):
        lines = []
        for _ in range(questions):
            answers = [text(1, 3) for _ in range(draw.randint(2, 4))]
            label = draw.randrange(len(answers))
            lines.append(
                {
                    "question": text(1, 9),
                    "answers": answers,
                    "label": label,
                    "text": text(0, 40),
                    "letter": "a",
                }
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "{{answers}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "local_last_word": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{question}}",
            "doc_to_target": " {{answers[0]}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "local_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}} ends",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
        },
        "local_answer": {
            "output_type": "generate_until",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{letter}}",
            "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    for name, kind in kinds.items():
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
            "validation_split": "validation",
        }
        examples = {} if name == "local_text" else {"training_split": "train"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | examples | kind))
    return folder
