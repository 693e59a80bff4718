"""Questions as token ids in which a prompt is text and nothing else.

A question carries the user's prompt. Were it pasted into the model's chat template and the whole tokenised, a prompt
that spells out one of the model's special tokens could add a picture, or end its turn and answer in the model's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from framegrove.errors import UserError

_PLACEHOLDER = "QUESTIONGOESHERE"


class QuestionEncoder:
    """Encodes questions into a chat template that was ``render``-ed around them, with a Hugging Face ``tokenizer``.

    Raises UserError when the template does not carry a question unchanged.
    """

    def __init__(self, tokenizer: Any, render: Callable[[str], str]) -> None:
        self._tokenizer = tokenizer
        parts = render(_PLACEHOLDER).split(_PLACEHOLDER)
        if len(parts) != 2:
            raise UserError("the model's chat template does not show a question once and as it is: use another model")
        self._before, self._after = parts
        # Runs of white space are tokens of their own in some vocabularies and steer nothing.
        added = {text: token for text, token in tokenizer.get_added_vocab().items() if text.strip()}
        # The token for unknown words stands for text.
        self._special = {*added.values(), *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        names = {*added, *tokenizer.all_special_tokens}
        # Where to cut a text so that no part of it spells a special token: behind the first character of each.
        cuts = (f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
        self._inside_special = re.compile("|".join(cuts), re.IGNORECASE)
        self._of_template = self._specials(self._encode(self._before + self._after))

    def encode(self, question: str) -> list[int]:
        """Token ids of the template with ``question`` in it.

        An ordinary question is tokenised together with the template, as the model was trained. Where special tokens
        other than the template's turn up, they come from the question, which is then encoded by itself, in pieces that
        spell none.
        """
        whole = self._encode(self._before + question + self._after)
        if self._specials(whole) == self._of_template:
            return whole
        plain = [token for piece in self._inside_special.split(question) for token in self._encode(piece)]
        if self._specials(plain):
            raise UserError(f"the prompt cannot be told from the verifier's special tokens: reword {question!r}")
        return self._encode(self._before) + plain + self._encode(self._after)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False) if text else []
        return ids

    def _specials(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._special]
