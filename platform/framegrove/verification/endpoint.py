"""The ``endpoint`` verifier: a vision-language model that is served elsewhere, asked questions over the network.

What is asked about which frames, and how a score is read from the answers, is as with the ``vllm`` verifier; so are its
scores, but for the tokens that a server does not list.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from framegrove.config.scores import Pairwise, YesNo
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.bradley_terry import both_orders
from framegrove.verification.chat import Chat, shown_as
from framegrove.verification.clips import Frames, frames_by_one
from framegrove.verification.comparing import compared, comparison_prices
from framegrove.verification.model import grey_frame, shown_together, words_of
from framegrove.verification.questions import Question, QuestionSet
from framegrove.verification.readings import Token, read, read_samples
from framegrove.verification.scoring import Answer
from framegrove.verification.verdicts import (
    PROBING_PROMPT,
    Asked,
    asked_of,
    check_asked,
    checked_questions,
    comparison_of,
    read_in_tries,
    verdict,
)

# How tokens that steer a model are spelt: <|im_end|>, <image>, [INST], [IMG], and with a wide bar.
_SPECIAL = re.compile(r"<(?=[|/\w\uff5c])|\[(?=/?[A-Z_]{3,}\])")


class EndpointVerifier:
    """Scores clips. Any number of ``score`` calls may run at a time; ``endpoint.at_a_time`` calls go out at a time."""

    def __init__(self, config: VerifierConfig) -> None:
        """Nothing is read or asked yet, so that what goes wrong comes out of ``ready`` as it is."""
        assert config.endpoint is not None, "a verifier of kind endpoint has one"
        self._config, self._endpoint = config, config.endpoint
        self._starting = asyncio.Lock()
        self._questions: QuestionSet | None = None
        self._chat: Chat | None = None

    async def ready(self) -> str:
        """The model's name, once it has answered a first question about a grey picture.

        Raises UserError, which names the verifier, for questions that are missing, a key that is not set, a server that
        does not answer and a model whose answer is none.
        """
        await self._started()
        return self._endpoint.model

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """Ask everything that ``work``'s assessment asks about the clip that ``units``, uint8 (T, H, W, 3), make up.

        Raises UserError, which names the verifier and the question, where an answer cannot be read.
        """
        began = time.monotonic()
        chat = await self._started()
        if isinstance(self._config.score, Pairwise):
            scored = await compared(work, self._config.score, prompt, units, self._compared)
            return replace(scored, cost=replace(scored.cost, seconds=time.monotonic() - began))
        questions = self._asks(work.assessment, prompt)
        check_asked(self._config, work.assessment, questions)
        frames = frames_by_one(*units)
        asked = self._asked(questions, [len(unit) for unit in units])
        parts = {shown: await self._parts([frames[at] for at in shown]) for shown in asked}
        calls = [(shown, text, places) for shown, texts in asked.items() for text, places in texts.items()]
        heard = await asyncio.gather(
            *(
                self._ask(chat, parts[shown], text, [questions[at].score for at in places])
                for shown, text, places in calls
            )
        )
        answers: list[list[Answer]] = [[] for _ in questions]
        for (_, _, places), (found, _) in zip(calls, heard, strict=True):
            for at, answer in zip(places, found, strict=True):
                answers[at].append(answer)
        made = sum(tries for _, tries in heard)
        cost = Cost(flops=self._price(made), seconds=time.monotonic() - began)
        return verdict(work, self._config.score, questions, answers, cost)

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: ``endpoint.price`` a call."""
        await self._started()
        if isinstance(score := self._config.score, Pairwise):
            return comparison_prices(self._config.assessments, score, [self._price(1)] * len(lengths))

        def flops(questions: Sequence[Question], depth: int) -> int:
            return self._price(sum(len(texts) for texts in self._asked(questions, lengths[: depth + 1]).values()))

        asked = {each: self._asks(each, prompt) for each in self._config.assessments}
        return {each: tuple(flops(asked[each], depth) for depth in range(len(lengths))) for each in asked}

    async def compare(self, prompt: str, first: Frames, second: Frames) -> float:
        """Log-odds that ``first`` is the better of two clips, uint8 (T, H, W, 3), made for ``prompt``.

        For a verifier whose score is of kind pairwise, which is asked in both orders: a liking for the first place
        cancels. Raises UserError where the answer is neither.
        """
        odds, _ = await self._compared(prompt, first, second)
        return odds

    async def _compared(self, prompt: str, first: Frames, second: Frames) -> tuple[float, int]:
        """The same, and the price."""
        score, chat = comparison_of(self._config), await self._started()
        one, other = shown_together(first, second, self._endpoint.max_frames)
        shown = [await self._parts(frames) for frames in (one, other)]
        text = score.question.format(frames=len(one), prompt=_harmless(prompt))
        orders = [self._ask(chat, [*a, *b], text, [""]) for a, b in (shown, reversed(shown))]
        ((ahead,), tried), ((behind,), again) = await asyncio.gather(*orders)
        return both_orders(ahead.odds, behind.odds), self._price(tried + again)

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Connections end with the process."""

    async def _started(self) -> Chat:
        async with self._starting:
            if self._chat is None:
                if not isinstance(self._config.score, Pairwise):
                    self._questions = await asyncio.to_thread(checked_questions, self._config)
                chat = Chat(f"verifier {self._config.name}", self._endpoint, self._config.score)
                try:
                    await self._probe(chat)
                except BaseException:
                    await chat.close()
                    raise
                self._chat = chat
            return self._chat

    async def _probe(self, chat: Chat) -> None:
        score, frame = self._config.score, grey_frame(64, 64)
        asked = self._asks(self._config.assessments[0], PROBING_PROMPT)
        if isinstance(score, Pairwise):
            parts, text = await self._parts([frame, frame]), score.question.format(frames=1, prompt=PROBING_PROMPT)
            await self._ask(chat, parts, text, [""])
        else:
            await self._ask(chat, await self._parts([frame]), asked[0].text, [asked[0].score])

    async def _ask(
        self, chat: Chat, parts: Sequence[dict[str, Any]], text: str, names: Sequence[str]
    ) -> tuple[list[Answer], int]:
        """The scores by these names in the answer to one question, and how often it was asked."""
        score, words = self._config.score, words_of(self._config)
        whole, who = text + self._instruction, f"verifier {self._config.name}"
        tries = 0

        def ask(seed: int) -> Awaitable[list[Token]]:
            nonlocal tries
            tries += 1
            return chat.tokens(parts, whole, seed)

        try:
            if not self._endpoint.logprobs:
                texts = await chat.texts(parts, whole)
                return [read_samples(score, name, texts, words) for name in names], 1
            found = await read_in_tries(
                who, score, ask, lambda tokens: [read(score, name, tokens, words) for name in names]
            )
            return found, tries
        except UserError as error:
            if str(error).startswith(who):
                raise
            raise UserError(f"{who} ({self._endpoint.model}) did not answer {text!r}: {error}") from error

    @property
    def _instruction(self) -> str:
        return self._endpoint.instruction if isinstance(self._config.score, YesNo) else ""

    def _asks(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        return () if self._questions is None else self._questions.questions(assessment, _harmless(prompt))

    def _asked(self, questions: Sequence[Question], lengths: Sequence[int]) -> Asked:
        return asked_of(questions, lengths, self._endpoint.max_frames)

    async def _parts(self, frames: Sequence[Frames]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(shown_as, self._endpoint, frames)

    def _price(self, calls: int) -> int:
        return round(calls * self._endpoint.price * (1 if self._endpoint.logprobs else self._endpoint.samples))


def _harmless(prompt: str) -> str:
    """A prompt that spells none of a model's special tokens, which a server would take for what they are."""
    return _SPECIAL.sub(lambda found: f"{found[0]} ", prompt)
