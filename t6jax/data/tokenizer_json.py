"""What a tokenizer.json says beside the tokenizer itself is kept away from a corpus.

A file may have been saved with truncation, padding or dropout on: of use to other programs, fatal
here. And its model may spell control tokens, so that a document that contains "</s>" is cut there.
"""

import copy
import secrets
from collections.abc import Collection, Mapping
from typing import Any


def for_encoding(definition: Mapping[str, Any], document_starts: Collection[str]) -> dict[str, Any]:
    """The tokenizer that encodes a whole text, always the same, without control tokens.

    Ids stay as they are. Control tokens are the special ones and those that start or end documents.
    The library passes over added tokens that are special, but a model that has them in its own
    vocabulary still finds them. There they get a name that no text contains.

    Args:
        definition: the parsed tokenizer.json.
        document_starts: the names of tokens that start or end documents.
    """
    found = copy.deepcopy(dict(definition))
    found |= {"truncation": None, "padding": None}
    model = found["model"]
    if model.get("dropout") is not None:
        model["dropout"] = None
    added = found.get("added_tokens") or []
    for token in added:
        token["special"] |= token["content"] in document_starts
    control = {token["content"] for token in added if token["special"]} | {*document_starts}
    hidden = {name: f"\U0010ffff{secrets.token_hex(16)}" for name in _spelled(model, control)}
    if hidden:
        _rename(model, hidden)
        for token in added:
            token["content"] = hidden.get(token["content"], token["content"])
    return found


def _spelled(model: Mapping[str, Any], control: set[str]) -> set[str]:
    """The control tokens that the model can find in a text."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: any piece
        return control & {piece for piece, _ in vocabulary}
    own = control & vocabulary.keys()
    if "merges" not in model or model.get("ignore_merges"):  # whole words
        return own
    merged = {_merged(model, *_pair(merge)) for merge in model["merges"]}
    return {name for name in own if name in merged or len(name) == 1}


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        return
    model["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            merge
            for merge in model["merges"]
            if not names.keys() & {*_pair(merge), _merged(model, *_pair(merge))}
        ]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _merged(model: Mapping[str, Any], first: str, second: str) -> str:
    return first + second.removeprefix(model.get("continuing_subword_prefix") or "")
