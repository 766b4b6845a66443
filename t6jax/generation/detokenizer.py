"""Token ids to text as they are generated."""

from collections.abc import Iterable

from t6jax.data.tokenizers import Tokenizer

# What a decoder says of a token goes by few tokens before it: whether it is the first, and the
# bytes of a character, of which a token has one at least. Twice as many are decoded at most.
CONTEXT = 8
UNKNOWN = "\ufffd"


class Detokenizer:
    """The text of a growing sequence of tokens, piece by piece.

    A token alone does not say its text: spaces are written at the borders of tokens, and a
    character may begin in one token and end in the next. So the running sequence is decoded, and
    what is new of its text is the piece. The pieces and `finish` joined are the text of all tokens,
    however they come. The time is linear in their number.

        detokenizer = Detokenizer(tokenizer, prompt_ids)
        for tokens in stream: print(detokenizer.push(tokens), end="")
        print(detokenizer.finish())

    Args:
      tokenizer: what the ids are of.
      context: the ids before the sequence, such as a prompt's, whose text is not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, context: Iterable[int] = ()):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the newest ids, or all of them
        self._given = 0  # characters of the window's text that were returned
        context = [*context]
        # the last few of a context are enough, unless they have no text
        for start in (max(0, len(context) - CONTEXT), 0):
            self._window = context[start:]
            self._given = len(self._complete(self._text()))
            if self._given:
                break

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids add, without a character at the end that is not complete."""
        # it has no text, so a run of it need not be kept
        self._window.extend(i for i in ids if i != self._tokenizer.document_start)
        text = self._complete(self._text())
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        self._shorten()
        return piece

    def finish(self) -> str:
        """The rest: what the last ids left incomplete, as U+FFFD."""
        text = self._text()
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece

    def _text(self) -> str:
        return self._tokenizer.decode(self._window).decode("utf-8", "replace")

    @staticmethod
    def _complete(text: str) -> str:
        """The text without what further bytes may change: the one U+FFFD that stands for the
        beginning of a character.
        """
        return text[:-1] if text.endswith(UNKNOWN) else text

    def _shorten(self) -> None:
        if len(self._window) < 2 * CONTEXT:
            return
        whole, returned = self._window, self._given
        pending = len(self._text()) - returned
        self._window = whole[-CONTEXT:]
        text = self._text()
        self._given = len(text) - pending
        if self._given <= 0:  # they have no text, so what follows may be the first that has
            self._window, self._given = whole, returned
