"""TokenScores: what each token of each row adds to the number that is explained.

Legend: R rows, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save
from torch import Tensor

from inlay._files import write_files
from inlay.errors import FolderError, InputError

if TYPE_CHECKING:
    import polars

    from inlay.attribute.asked import Asked

    Explain = Callable[[Asked], Tensor]

_FILES = ("scores.safetensors", "scores.json")
_TENSORS = ("scores", "m_clean", "m_baseline")
_KEPT_ONLY = ("asked", "explain")
_SHOWN = 8  # rows in a notebook


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of tokens. Positive: with this token, and not the baseline in its place, the number is higher.

    Attributes:
        scores: float32 [R, T]; NaN where a row has no token, or none that was scored.
        tokens: for each row the text of its tokens.
        ids: for each row their ids.
        target: for each row what is explained, as text.
        foil: what it is held against, or `None`.
        quantity: the number: a name of `QUANTITIES`, `"projection"`, or a function's name.
        method: the method, with its settings where these are not its own.
        baseline: what stands for "not there".
        m_clean, m_baseline: float32 [R], the number on the row and on its baseline; NaN for methods without one.
        steps: for each row its prompt and the step of its response, where each step is a row of its own.
        report: what the backward rules hit, as text; "" without rules.
        signed: whether a negative score means that the token lowers the number; else scores are sizes.
        asked: what was asked, against each baseline, for metrics that ask again; it refers to the model. Not on disk,
            and empty for scores from there.
        explain: the method, gives for an `Asked` scores [R, T], under its rules. Not on disk.
    """

    scores: Tensor
    tokens: list[list[str]]
    ids: list[list[int]]
    target: list[str]
    foil: list[str] | None
    quantity: str
    method: str
    baseline: str
    m_clean: Tensor
    m_baseline: Tensor
    steps: list[tuple[int, int]] | None = None
    report: str = field(default="", repr=False)
    signed: bool = True
    asked: tuple[Asked, ...] = field(default=(), repr=False)
    explain: Explain | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def residual(self) -> Tensor:
        """What the scores leave unexplained, float32 [R]: m_clean - m_baseline - their sum. 0 for complete methods.

        NaN for sizes, which have no sign to add up with.
        """
        if not self.signed:
            return self.m_clean * float("nan")
        return self.m_clean - self.m_baseline - self.scores.nansum(1)

    @property
    def caption(self) -> str:
        """What a figure of these scores has to say: number, method, baseline and sign."""
        if not self.signed:
            return f"{self.quantity} by {self.method}; a size: the larger, the more hangs on the token"
        return f"{self.quantity} by {self.method}, baseline {self.baseline}; positive: the token raises it"

    def title(self, row: int) -> str:
        """What is explained in a row."""
        against = "" if self.foil is None else f" against {self.foil[row]!r}"
        return f"{self.quantity} of {self.target[row]!r}{against}" if self.target[row] else self.quantity

    def row(self, row: int) -> list[tuple[str, float]]:
        """A row's tokens with their scores."""
        return list(zip(self.tokens[row], self.scores[row].tolist(), strict=False))

    def by(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """The sums over groups of tokens: for each row its groups' scores.

        Args:
            groups: for each row its groups, each a list of positions, such as `inlay.attribute.groups(model, scores)`.
        """
        if len(groups) != len(self):
            raise InputError(f"groups of {len(groups)} rows for {len(self)}: give one list for each row")
        return [[float(self.scores[row, list(one)].nansum()) for one in some] for row, some in enumerate(groups)]

    def matrix(self, prompt: int = 0) -> Tensor:
        """A response's steps of one prompt, float32 [steps, T]: which tokens each step comes from.

        Raises:
            InputError: the scores are of no steps.
        """
        if self.steps is None:
            raise InputError("these scores are of one number a row: ask with responses= and per_step=True for steps")
        mine = [index for index, (owner, _) in enumerate(self.steps) if owner == prompt]
        if not mine:
            raise InputError(f"there is no prompt {prompt}: there are {self.steps[-1][0] + 1}")
        return self.scores[mine][:, : max(len(self.tokens[index]) for index in mine)]

    def frame(self, groups: Mapping[str, Sequence[Sequence[int]]] | None = None) -> polars.DataFrame:
        """One line for each token: row, pos, token, score, span.

        Args:
            groups: names of spans, each with its positions for each row; `span` is null where none has the token.
        """
        import polars

        lines: list[dict[str, Any]] = []
        for row, texts in enumerate(self.tokens):
            for pos, (text, score) in enumerate(zip(texts, self.scores[row].tolist(), strict=False)):
                span = next((name for name, where in (groups or {}).items() if pos in where[row]), None)
                lines.append({"row": row, "pos": pos, "token": text, "score": score, "span": span})
        schema = {
            "row": polars.Int64,
            "pos": polars.Int64,
            "token": polars.String,
            "score": polars.Float32,
            "span": polars.String,
        }
        return polars.DataFrame(lines, schema=schema)

    # -- pictures ----------------------------------------------------------------------------------------------------

    def html(self, path: str | Path | None = None) -> str:
        """A page with the text on the colours of its scores; see `inlay.attribute.pictures` for several methods.

        Args:
            path: a file to write it to as well.

        Raises:
            FolderError: the disk refuses.
        """
        from inlay.attribute.pictures.html import token_html

        made = token_html(self)
        if path is not None:
            where = Path(path).expanduser()
            write_files(where.parent, {where.name: made.encode()})
        return made

    def latex(self, row: int = 0) -> str:
        r"""A row as LaTeX, for a document with `\usepackage{xcolor}`."""
        from inlay.attribute.pictures.latex import token_latex

        return token_latex(self, row)

    def print(self, row: int | None = None, *, top: int = 10) -> None:
        """Show the rows, or one, in the terminal: the text on colours, and its `top` largest scores as numbers."""
        from rich import print as show

        from inlay.attribute.pictures.terminal import token_terminal

        show(token_terminal(self, row, top=top))

    def _repr_html_(self) -> str:
        """What a notebook shows: the first rows."""
        from inlay.attribute.pictures.html import token_fragment

        shown = token_fragment(self, range(min(len(self), _SHOWN)))
        return shown + f"<p>The first {_SHOWN} of {len(self)} rows; html() has all.</p>" * (len(self) > _SHOWN)

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write a folder of `scores.safetensors` and `scores.json`.

        Raises:
            FolderError: the disk refuses.
        """
        names = [one.name for one in fields(self) if one.name not in (*_TENSORS, *_KEPT_ONLY)]
        facts = {name: getattr(self, name) for name in names}
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        text = json.dumps(facts, indent=1).encode()
        write_files(Path(folder).expanduser(), dict(zip(_FILES, (save(tensors), text), strict=True)))

    @classmethod
    def load(cls, folder: str | Path) -> TokenScores:
        """The scores of a folder.

        Raises:
            FolderError: a file is missing or is none of these.
        """
        where = Path(folder).expanduser()
        try:
            tensors = load_file(where / _FILES[0])
            facts = json.loads((where / _FILES[1]).read_text())
            steps = None if facts["steps"] is None else [(int(a), int(b)) for a, b in facts.pop("steps")]
            return cls(**{**{name: tensors[name] for name in _TENSORS}, **facts, "steps": steps})
        except Exception as error:
            raise FolderError(f"{where} holds no scores of tokens: {error}") from error
