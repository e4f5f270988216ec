"""The questions that a model is asked about a text, and how its rating is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from inlay.errors import JudgeError
from inlay.judges.judge import Axis, Reply

_PART = re.compile(r"\{(\w+)\}")
_RATING = re.compile(r"rating[\s:*_]*\[\[\s*([^\[\]]*?)\s*\]\]", re.IGNORECASE)
_PARTS = ("concept", "prompt", "text")

_END = """
Explain your choice in a few sentences. Then write your rating on a line of its own, in exactly this form:
Rating: [[x]]
where x is 0, 1 or 2."""

AXBENCH: Mapping[str, str] = {
    "concept": """You are given a concept and a fragment of text. Judge how clearly the concept is present in the
fragment. Do not judge grammar, coherence or whether the fragment is true.

0: the concept is absent.
1: the concept is present, but only minimally or awkwardly.
2: the concept is present in full, and naturally.

[Concept]
{concept}
[End of concept]

[Fragment]
{text}
[End of fragment]
"""
    + _END,
    "instruction": """You are given an instruction and a fragment of a reply to it. Judge whether the fragment is
topically related to the instruction. Do not judge how good the reply is, or whether it is complete.

0: the fragment has nothing to do with the instruction.
1: the fragment is related to the instruction, but minimally or indirectly.
2: the fragment is clearly about what the instruction asks.

[Instruction]
{prompt}
[End of instruction]

[Fragment]
{text}
[End of fragment]
"""
    + _END,
    "fluency": """You are given a fragment of text, which may be cut off at its end. Judge its fluency only. Do not
judge what it says, or whether it is complete.

0: the fragment is incomprehensible, or repeats itself over and over.
1: the fragment can be read, but has noticeable errors or sounds unnatural.
2: the fragment is almost perfect.

[Fragment]
{text}
[End of fragment]
"""
    + _END,
}
"""AxBench's three ratings (arXiv 2501.17148, section 3.2) in words of ours: scores are not comparable with published
ones."""

YES_NO: Mapping[str, str] = {
    "concept": "Text: {text}\n\nDoes the text clearly contain this concept: {concept}? Answer yes or no.",
    "instruction": "Instruction: {prompt}\n\nReply: {text}\n\nIs the reply about what the instruction asks? "
    "Answer yes or no.",
}
"""Questions whose answer is yes or no."""

MEANINGS = {
    "concept": "how clearly the concept is present",
    "instruction": "how far the text is related to the instruction",
    "fluency": "how fluent the text is",
}


def axis(name: str) -> Axis:
    """An axis from 0 to 2; one that is not ours says that its question decides."""
    return Axis(0.0, 2.0, MEANINGS.get(name, f"the judge's rating of {name}"))


def check_questions(questions: Mapping[str, str]) -> None:
    """Raise where a question does not show the text, or names what no reply has.

    Raises:
        JudgeError: naming the question.
    """
    if not questions:
        raise JudgeError("questions is empty: give one for each axis, or leave it out")
    for name, template in questions.items():
        parts = set(_PART.findall(template))
        if unknown := sorted(parts - set(_PARTS)):
            raise JudgeError(f"the question of {name!r} has {{{unknown[0]}}}; a reply has {', '.join(_PARTS)}")
        if "text" not in parts:
            raise JudgeError(f"the question of {name!r} has no {{text}}: it shows nothing that could be judged")


def applies(template: str, reply: Reply) -> bool:
    """Whether a question can be asked of a reply: one about a concept needs one."""
    return reply.concept is not None or "concept" not in _PART.findall(template)


def render(template: str, reply: Reply) -> str:
    """The question about a reply; braces in the reply stay as they are."""
    parts = {"concept": reply.concept or "", "prompt": reply.prompt, "text": reply.text}
    return _PART.sub(lambda found: parts[found[1]], template)


def hash_of(template: str) -> str:
    """SHA-256 of a question, in hex."""
    return hashlib.sha256(template.encode()).hexdigest()


def rating(answer: str) -> float | None:
    """The last `Rating: [[x]]` of an answer, where x is 0, 1 or 2; `None` where there is none."""
    said = _RATING.findall(answer)
    try:
        value = float(said[-1]) if said else None
    except ValueError:
        return None
    return value if value in (0.0, 1.0, 2.0) else None
