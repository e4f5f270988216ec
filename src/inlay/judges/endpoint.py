"""How one question is asked of an endpoint: at what pace, how often again, and what counts as an answer."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from inlay.errors import JudgeError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_PASSING = (408, 409, 429)  # as are all from 500 on
_FATAL = {401: "check the API key", 403: "check what the API key may use", 404: "check the model's name and base_url"}


class UnansweredError(Exception):
    """A question has no usable answer.

    Args:
        why: the reason.
        of_text: whether the text is at fault, and not the endpoint, which has read it.
    """

    def __init__(self, why: str, of_text: bool = False) -> None:
        super().__init__(why)
        self.of_text = of_text


class _NonsenseError(UnansweredError):
    """There was an answer, and it is no use; asking again may help."""


class Pace:
    """Spaces requests evenly in time.

    Args:
        per_minute: how many a minute, `None` for no limit.
        clock: seconds.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = self._held = 0.0  # when the next may go out, and before when none may

    def hold(self, seconds: float) -> None:
        """Let no request go out for so long: the endpoint asked for it, whoever was told."""
        self._held = max(self._held, self._clock() + seconds)
        self._next = max(self._next, self._held)

    async def turn(self) -> None:
        """Wait for one's turn."""
        while True:
            now = self._clock()
            mine = max(now, self._next)
            self._next = mine + self.gap
            if mine > now:
                await self._sleep(mine - now)
            if mine >= self._held:  # else a hold came in the meantime
                return


@dataclass(frozen=True)
class Waits:
    """How long to wait before asking again, in seconds: a random time below `first` x 2^tries, at most `longest`.

    What the endpoint asks for comes first, up to `patience`.
    """

    first: float = 1.0
    longest: float = 60.0
    patience: float = 600.0

    def asked(self, error: BaseException | None) -> float | None:
        """Seconds that the endpoint itself asks for in `Retry-After`, `None` where it does not.

        Raises:
            JudgeError: they are more than `patience`.
        """
        seconds = _retry_after(error)
        if seconds is not None and seconds > self.patience:
            raise JudgeError(f"the endpoint asks to wait for {seconds:.0f} s (Retry-After); run again after that")
        return seconds

    def before(self, tried: int) -> float:
        """Seconds to wait after `tried` tries, where the endpoint does not say."""
        return random.uniform(0.5, 1.0) * min(self.longest, self.first * 2.0 ** (tried - 1))


@dataclass(frozen=True)
class Endpoint:
    """A chat-completions endpoint.

    Attributes:
        client: the client.
        settings: what every request has: model, temperature, max_tokens.
        retries: how often a question is asked again.
        waits: how long to wait before that.
        pace: when the next request may go out.
        spent: told what is spent as it is: requests, input tokens, output tokens.
    """

    client: AsyncOpenAI
    settings: dict[str, Any]
    retries: int
    waits: Waits
    pace: Pace
    spent: Callable[[int, int, int], None]

    async def ask(self, question: str, usable: Callable[[str], bool]) -> str:
        """The answer to a question.

        Args:
            question: what the user's turn says.
            usable: whether an answer is one.

        Raises:
            UnansweredError: no usable answer, in all tries or at once where another try cannot help.
            JudgeError: the endpoint refuses every question: a wrong key, no such model, no money.
        """
        import tenacity

        def wait(state: tenacity.RetryCallState) -> float:
            asked = self.waits.asked(state.outcome.exception() if state.outcome else None)
            if asked is None:
                return self.waits.before(state.attempt_number)
            self.pace.hold(asked)
            return asked

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=wait,
            retry=tenacity.retry_if_exception(_passing),
            reraise=True,
        )
        try:
            return await retrying(self._once, question, usable)
        except (UnansweredError, JudgeError):
            raise
        except Exception as error:
            raise self._final(error) from None  # the cause may show the key in a header

    async def _once(self, question: str, usable: Callable[[str], bool]) -> str:
        await self.pace.turn()
        self.spent(1, 0, 0)
        try:
            found: Any = await self.client.chat.completions.create(
                messages=[{"role": "user", "content": question}], **self.settings
            )
        except ValueError as error:  # a body that is no JSON
            raise _NonsenseError(f"the endpoint's reply cannot be read: {error}") from None
        usage = getattr(found, "usage", None)
        self.spent(0, getattr(usage, "prompt_tokens", None) or 0, getattr(usage, "completion_tokens", None) or 0)
        try:
            answer = found.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            raise _NonsenseError("the endpoint's reply is no chat completion") from None
        if not isinstance(answer, str) or not usable(answer):
            raise _NonsenseError(f"the answer has no rating: {answer!r:.200}", of_text=True)
        return answer

    def _final(self, error: Exception) -> Exception:
        """What is said of an error of the client that stays."""
        import openai

        said = str(error).replace(self.client.api_key, "***")[:300]
        if isinstance(error, openai.APIStatusError):
            fatal = _FATAL.get(error.status_code) or ("add credit" if _out_of_money(error) else None)
            if getattr(error, "code", None) in ("unsupported_parameter", "unsupported_value"):
                fatal = "leave that setting to the endpoint, with temperature=None or max_tokens=None"
            if fatal:
                return JudgeError(f"the endpoint refuses {self.settings['model']!r} ({said}): {fatal}")
        elif not isinstance(error, openai.APIError):
            return error
        refused = isinstance(error, openai.APIStatusError) and not _passing(error)
        return UnansweredError(f"{type(error).__name__}: {said}", of_text=refused)


def _passing(error: BaseException) -> bool:
    """Whether asking again may help."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return (error.status_code in _PASSING or error.status_code >= 500) and not _out_of_money(error)
    return isinstance(error, (_NonsenseError, openai.APIConnectionError, openai.APIResponseValidationError))


def _out_of_money(error: Any) -> bool:
    return getattr(error, "code", None) == "insufficient_quota"


def _retry_after(error: BaseException | None) -> float | None:
    """The seconds that an endpoint asks to wait: `Retry-After` as seconds or as a date; `None` where it does not."""
    value = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
