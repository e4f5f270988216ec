"""ChatJudge: any OpenAI-compatible endpoint as a judge."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import ExtraError, JudgeError
from inlay.judges.cache import Cache
from inlay.judges.endpoint import Endpoint, Pace, UnansweredError, Waits
from inlay.judges.finish import finish
from inlay.judges.judge import Reply
from inlay.judges.questions import AXBENCH, applies, axis, check_questions, hash_of, rating, render
from inlay.scores import Scores

if TYPE_CHECKING:
    from openai import AsyncOpenAI


ALL = 3  # so many questions of which none is answered mean that the endpoint, not a text, is at fault


@dataclass(frozen=True)
class Cost:
    """What a judge has spent since it was made.

    Attributes:
        requests: requests that were sent, those that failed too.
        input_tokens, output_tokens: as the endpoint counts them.
        usd: in US dollars; `None` without prices.
        cached: ratings that needed no request: known from before, or of a text that is there twice.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    cached: int

    def __str__(self) -> str:
        tokens = f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens"
        price = "" if self.usd is None else f", {self.usd:.2f} USD"
        return f"{self.requests:,} requests, {tokens}{price}; {self.cached:,} ratings needed none"


class ChatJudge:
    """Asks a chat model one question an axis and reads the rating, 0 to 2, from its answer.

    Every rated answer is on disk as soon as it arrives; a killed run, called again, asks for the rest only. The key of
    an answer is the question's hash, the judge's model, the temperature and the rendered text: not the endpoint, so a
    model that moves to another host keeps its answers. A text without a rating after all retries has no value and a
    reason in `failed`; it is not stored, and asked for again the next time.

    Scores by questions of one's own are not comparable with those that others publish under the same names.

    Args:
        model: the judge's name at the endpoint.
        base_url: the endpoint; by default `OPENAI_BASE_URL`, else OpenAI's own.
        api_key: by default `OPENAI_API_KEY`, read at each call; a `base_url` may do without. It is kept in memory only.
        questions: one template an axis, with `{text}`, and `{concept}` and `{prompt}` where it needs them. One with
            `{concept}` is asked only of replies that have one.
        temperature: of sampling; `None` leaves it to the endpoint.
        concurrency: how many requests are open at once.
        requests_per_minute: the most that are sent, evenly spaced; `None` for no limit.
        retries: how often a question is asked again after an answer without a rating, a status 408, 409, 429 or 5xx, a
            timeout or a lost connection.
        waits: how long to wait before that; the endpoint's `Retry-After` comes first.
        timeout_s: seconds until a request counts as lost.
        cache: the file of answers, JSON lines; `None` for memory only.
        prices: US dollars for a million input tokens and for a million output tokens.
        max_tokens: the most that an answer may have; `None` leaves it to the endpoint.

    Raises:
        JudgeError: a question does not show the text, or a number is out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        questions: Mapping[str, str] = AXBENCH,
        temperature: float | None = 0.0,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        retries: int = 5,
        waits: Waits = Waits(),  # noqa: B008 - frozen
        timeout_s: float = 60.0,
        cache: str | Path | None = "judge.jsonl",
        prices: tuple[float, float] | None = None,
        max_tokens: int | None = 1024,
    ) -> None:
        check_questions(questions)
        if concurrency < 1 or retries < 0 or timeout_s <= 0 or (requests_per_minute or 1) <= 0:
            raise JudgeError(
                f"concurrency={concurrency} must be at least 1, retries={retries} at least 0, and "
                f"timeout_s={timeout_s} and requests_per_minute={requests_per_minute} above 0"
            )
        self.model, self.questions, self.temperature = model, dict(questions), temperature
        self.axes = {name: axis(name) for name in questions}
        self.concurrency, self.retries, self.waits, self.timeout_s = concurrency, retries, waits, timeout_s
        self.prices, self.max_tokens = prices, max_tokens
        self._base_url, self._api_key = base_url, api_key
        self._pace, self._cache, self._turn = Pace(requests_per_minute), Cache(cache), threading.Lock()
        self._requests = self._input = self._output = self._cached = 0

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        """See `Judge.score`; `raw` has the answers, `failed` why there is none.

        It also runs where an event loop does already, as in a notebook.

        Raises:
            ExtraError: openai or tenacity is not installed.
            JudgeError: there is no API key, the endpoint refuses or leaves every question, or the cache cannot be used.
        """
        keys = {name: [self._key(template, reply) for reply in replies] for name, template in self.questions.items()}
        asked = {key: question for keyed in keys.values() for key, question in keyed if key}
        with self._turn, self._cache:
            missing = {key: question for key, question in asked.items() if self._rated(key) is None}
            self._cached += sum(bool(key) for keyed in keys.values() for key, _ in keyed) - len(missing)
            failed = finish(self._ask_all(self._client(), missing)) if missing else {}
        # a run that goes on asks again what was refused before, and only that may be left: no fault of the endpoint's
        again = len(missing) < len(asked) and all(why.of_text for why in failed.values())
        if len(failed) == len(missing) >= ALL and not again:
            why = next(iter(failed.values()))
            raise JudgeError(f"none of {len(failed)} questions was answered, the first because: {why}")
        whys = {key: str(why) for key, why in failed.items()}
        return {name: self._scores(name, [key for key, _ in keyed], whys) for name, keyed in keys.items()}

    def identity(self) -> dict[str, Any]:
        """Its kind, model, temperature and hashes of the questions; neither endpoint nor key."""
        return {
            "kind": "chat",
            "model": self.model,
            "temperature": self.temperature,
            "questions": {name: hash_of(template) for name, template in self.questions.items()},
        }

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        usd = None
        if self.prices is not None:
            usd = (self._input * self.prices[0] + self._output * self.prices[1]) / 1e6
        return Cost(self._requests, self._input, self._output, usd, self._cached)

    # -- one score ---------------------------------------------------------------------------------------------------

    def _key(self, template: str, reply: Reply) -> tuple[str, str]:
        """The key of a question about a reply, and the question; both empty where it does not apply."""
        if not applies(template, reply):
            return "", ""
        question = render(template, reply)
        parts = json.dumps([hash_of(template), self.model, self.temperature, question])
        return hashlib.sha256(parts.encode()).hexdigest(), question

    def _rated(self, key: str) -> float | None:
        answer = self._cache.get(key)
        return None if answer is None else rating(answer)

    def _scores(self, name: str, keys: Sequence[str], failed: Mapping[str, str]) -> Scores:
        return self.axes[name].scores(
            [self._rated(key) for key in keys],
            [self._cache.get(key) or "" for key in keys],
            [failed.get(key) for key in keys],
        )

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask_all(self, client: AsyncOpenAI, questions: Mapping[str, str]) -> dict[str, UnansweredError]:
        """Ask and store; returns why some were not answered. As many workers as requests may be open share the rest."""
        failed: dict[str, UnansweredError] = {}
        left = iter(questions.items())

        async def work(endpoint: Endpoint) -> None:
            for key, question in left:
                try:
                    answer = await endpoint.ask(question, lambda answer: rating(answer) is not None)
                except UnansweredError as error:
                    failed[key] = error
                else:
                    self._cache.add(key, answer)

        try:
            async with client, asyncio.TaskGroup() as group:
                endpoint = Endpoint(client, self._settings(), self.retries, self.waits, self._pace, self._spent)
                for _ in range(min(self.concurrency, len(questions))):
                    group.create_task(work(endpoint))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return failed

    def _settings(self) -> dict[str, Any]:
        settings = {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in settings.items() if value is not None}

    def _spent(self, requests: int, input_tokens: int, output_tokens: int) -> None:
        self._requests += requests
        self._input += input_tokens
        self._output += output_tokens

    def _client(self) -> AsyncOpenAI:
        for name in ("openai", "tenacity"):
            if importlib.util.find_spec(name) is None:
                raise ExtraError(f"judging by a chat endpoint needs {name}: pip install 'inlay[judge]'")
        from openai import AsyncOpenAI

        url = self._base_url or os.environ.get("OPENAI_BASE_URL")
        key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if not key and not url:
            raise JudgeError(
                "there is no API key: set OPENAI_API_KEY, or give api_key= or the base_url= of a local server"
            )
        return AsyncOpenAI(api_key=key or "none", base_url=url, timeout=self.timeout_s, max_retries=0)

    def __repr__(self) -> str:
        return f"ChatJudge({self.model!r}, {', '.join(self.axes)})"
