"""Steering: replies under every direction and strength, from one batched generation, judged and written row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch

from inlay.bench.concept_set import ConceptSet
from inlay.bench.config import PLAIN, BenchConfig
from inlay.bench.journal import Journal
from inlay.bench.metrics import overall
from inlay.directions.direction import Direction
from inlay.interventions.bank import Bank
from inlay.interventions.closed_form import Add
from inlay.interventions.edit import Edit
from inlay.judges.judge import Judge, Reply

if TYPE_CHECKING:
    from inlay.model.model import Model

AXES = ("concept", "instruction", "fluency")
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Cell:
    """One reply to be made: who steers, to which concept, how strongly, on which prompt.

    Attributes:
        method: of a direction, or one of `PLAIN`.
        concept_id: of the set.
        prompt_id: the prompt's number among the concept's.
        site: the direction's, empty for none.
        factor: the strength in the direction's scale, 0 for none.
    """

    method: str
    concept_id: int
    prompt_id: int
    site: str = ""
    factor: float = 0.0

    @property
    def key(self) -> str:
        """What names its row in a journal."""
        return f"{self.method}/{self.site}/{self.concept_id}/{self.prompt_id}/{self.factor!r}"


class Steering:
    """Generates and judges cells of one run.

    Args:
        model: the Model.
        concepts: the set; its prompts are answered.
        directions: all that steer; those of one Site are one Bank.
        judge: scores `concept`, `instruction` and `fluency`, each 0 to 2.
        config: the run's settings.
        replies: where texts are written.
        ratings: where scores are written.
    """

    def __init__(
        self,
        model: Model,
        concepts: ConceptSet,
        directions: Sequence[Direction],
        judge: Judge,
        config: BenchConfig,
        replies: Journal,
        ratings: Journal,
    ) -> None:
        self.model, self.concepts, self.judge, self.config = model, concepts, judge, config
        self.replies, self.ratings = replies, ratings
        self.by_id = {c.id: c for c in concepts.concepts}
        names = {c.name: c.id for c in concepts.concepts}
        skip = model.encoder.prefix()
        tokens = config.steer_tokens or (f"prompt[{skip}:]+response" if skip else "all")
        self.edits: dict[str, Edit] = {}
        self.rows: dict[tuple[str, str, int], int] = {}
        for site in dict.fromkeys(str(d.site) for d in directions):
            mine = [d for d in directions if str(d.site) == site]
            self.edits[site] = Edit(site, Bank([Add(d.vector * d.scale) for d in mine]), tokens)
            self.rows |= {(d.method, site, names[d.concept]): row for row, d in enumerate(mine, 1)}

    def run(self, cells: Sequence[Cell], advance: Advance = lambda done: None) -> None:
        """Generate and judge what is not there yet; a rating that failed before is asked for again.

        Raises:
            FolderError: the disk refuses; what was written before stays, and the next run goes on there.
            InlayError: the model, an edit or the judge fails.
        """
        self._generate(cells, advance)
        self._judge([cell for cell in cells if self._unrated(cell)])

    def row(self, cell: Cell) -> dict[str, Any]:
        """What is known of a cell: its own fields, prompt, text, ratings and overall score."""
        rating = self.ratings.rows[cell.key]
        scores = {axis: rating[axis] for axis in AXES}
        whole = overall(*(scores[axis] for axis in AXES))
        text = {"prompt": self._prompt(cell), "text": self.replies.rows[cell.key]["text"]}
        return {**asdict(cell), **text, **scores, "overall": whole, "failed": rating["failed"]}

    # -- texts -------------------------------------------------------------------------------------------------------

    def _prompt(self, cell: Cell) -> str:
        return self.concepts.prompts[cell.concept_id][cell.prompt_id]

    def instruction(self, prompt: str) -> str:
        """An instruction as the model takes it: a user's turn, or a line, as in the texts that it was read on."""
        return prompt if self.model.encoder.chat else prompt + "\n"

    def _given(self, cell: Cell) -> str:
        """What the model is given: the prompt, which the methods of `PLAIN` that ask for the concept extend."""
        prompt = self._prompt(cell)
        if cell.method in PLAIN[1:]:
            simple = cell.method == "simple_prompt"
            prompt = self.concepts.asked(self.by_id[cell.concept_id], prompt, simple)
        return self.instruction(prompt)

    def _generate(self, cells: Sequence[Cell], advance: Advance) -> None:
        for site, batch in self._batches(cells):
            new = [cell for _, same in batch for cell in same if cell.key not in self.replies]
            if not new:
                continue
            kwargs: dict[str, Any] = {"max_new_tokens": self.config.max_new_tokens, "do_sample": False}
            if self.config.temperature:
                kwargs |= {"do_sample": True, "temperature": self.config.temperature, "top_k": 0, "top_p": 1.0}
            if site:
                rows = [self.rows[cell.method, site, cell.concept_id] for cell, _ in batch]
                kwargs |= {"edit": self.edits[site], "rows": rows, "strength": [cell.factor for cell, _ in batch]}
            device = self.model.device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(_seed(self.config.seed, *(cell.key for cell, _ in batch)))
                texts = self.model.generate([self._given(cell) for cell, _ in batch], **kwargs)
            said = {cell.key: text for (_, same), text in zip(batch, texts, strict=True) for cell in same}
            self.replies.append({"key": cell.key, "text": said[cell.key]} for cell in new)
            advance(len(new))

    def _batches(self, cells: Sequence[Cell]) -> Iterator[tuple[str, list[tuple[Cell, list[Cell]]]]]:
        """Cells of one Site in batches, shorter prompts first; cells that ask the same of the plain model are one.

        The batches are those of a run that was never interrupted, whose samples a resumed run thus draws again.
        """
        alike: dict[str, list[Cell]] = {}
        for cell in cells:
            alike.setdefault(cell.key if cell.site else f"\0{self._given(cell)}", []).append(cell)
        groups: dict[str, list[tuple[Cell, list[Cell]]]] = {}
        for same in alike.values():
            groups.setdefault(same[0].site, []).append((same[0], same))
        for site, group in groups.items():
            group.sort(key=lambda pair: len(self._given(pair[0])))
            for start in range(0, len(group), self.config.batch_rows):
                yield site, group[start : start + self.config.batch_rows]

    # -- ratings -----------------------------------------------------------------------------------------------------

    def _unrated(self, cell: Cell) -> bool:
        row = self.ratings.rows.get(cell.key)
        return row is None or row["failed"] is not None

    def _judge(self, cells: Sequence[Cell]) -> None:
        size = 8 * self.config.batch_rows
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            given = [
                Reply(self._prompt(c), self.replies.rows[c.key]["text"], self.by_id[c.concept_id].name) for c in batch
            ]
            scores = self.judge.score(given)
            rows = []
            for index, cell in enumerate(batch):
                values = {axis: scores[axis].values[index] for axis in AXES}
                why = [scores[axis].failed[index] for axis in AXES if scores[axis].failed]
                rows.append({"key": cell.key, **values, "failed": next((w for w in why if w is not None), None)})
            self.ratings.append(rows)


def _seed(*key: object) -> int:
    return int.from_bytes(blake2b("\n".join(map(str, key)).encode(), digest_size=6).digest())
