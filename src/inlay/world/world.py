"""World: a language with known concepts, facts, harm and instructions, and lines of it with their truth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inlay.errors import WorldError
from inlay.world.asked import asked
from inlay.world.circuits import Circuits
from inlay.world.concept import Concept, read_concepts
from inlay.world.concepts import Concepts
from inlay.world.draw import Draw
from inlay.world.facts import Facts
from inlay.world.folder import hash_of, read_frames, read_spec, read_templates, texts
from inlay.world.grammar import Grammar, sentences
from inlay.world.instructions import Instructions
from inlay.world.judge import concept_score, fluency_score
from inlay.world.line import SPECIALS, Draft, Line
from inlay.world.safety import Safety
from inlay.world.scores import Scorer
from inlay.world.share import Corpus, read_share

SPLITS = ("train", "test")
# What the sections say in words of their own, whatever the world.
_FIXED = """about which note has have what does it start with end say today means says : , . ? !
list signs verdict the watch lasted from to and met at gave"""
Section = Concepts | Safety | Facts | Instructions | Circuits


class World:
    """A micro-world, read from a folder of `world.yaml`, `words/`, `templates/` and `concepts.jsonl`.

    Attributes:
        spec: what `world.yaml` says.
        grammar: word classes and sentence templates.
        sections: the sections that it has, by name.
        seed: the seed of its lines.
        hash: SHA-256 of the files that its lines depend on, in hex: two worlds of one hash make the same lines.

    Args:
        folder: the folder.
        seed: the seed of its lines.

    Raises:
        WorldError: a file is missing or broken, a word is in two classes, or a template is ambiguous.
    """

    def __init__(self, folder: str | Path, seed: int = 0) -> None:
        self.folder, self.seed = Path(folder), seed
        self.spec = read_spec(self.folder / "world.yaml")
        self.hash = hash_of(self.folder)
        spec = self.spec
        self.all_concepts = read_concepts(self.folder / "concepts.jsonl") if spec.concepts else []
        classes = {path.stem: path.read_text().split() for path in sorted((self.folder / "words").glob("*.txt"))}
        safety = Safety(spec.safety) if spec.safety else None
        slots = spec.concepts.slots if spec.concepts else {}
        lexical: dict[str, list[str]] = {slot: [] for slot in slots.values()}
        for concept in self.all_concepts:
            if concept.genre in slots:
                lexical[slots[concept.genre]] += concept.words
        self.frames = read_frames(self.folder / "templates" / "frames.txt") if spec.concepts else []
        free = read_templates(self.folder / "templates" / "sentence.txt")
        if safety:
            classes |= safety.classes
        self.grammar = Grammar(classes, lexical, free, self._literals(), spec.stray)
        self.grammar.learn([frame.first for frame in self.frames])
        self.sections: dict[str, Section] = {}
        if spec.concepts:
            self.sections["concepts"] = Concepts(spec.concepts, self.grammar, self.all_concepts, self.frames)
        if safety:
            if safety.reach <= spec.window:
                raise WorldError(
                    f"a window of {spec.window} sees the verb from the prompt's end, {safety.reach} tokens behind it: "
                    "give a smaller window or a longer safety.ask"
                )
            self.grammar.learn(safety.templates())
            self.sections["safety"] = safety
        if spec.facts:
            self.sections["facts"] = facts = Facts(spec.facts, self.grammar, spec.version)
            self.grammar.learn(facts.templates())
        if spec.instructions:
            self.sections["instructions"] = Instructions(spec.instructions, self.grammar, spec.version)
        if spec.circuits:
            self.sections["circuits"] = Circuits(spec.circuits, self.grammar)
        _check_words(self)

    # -- words -------------------------------------------------------------------------------------------------------

    def _literals(self) -> set[str]:
        """Every word that some line may have and no class holds."""
        found: set[str] = set()
        for frame in self.frames:
            found |= {p for t in (frame.ask, frame.first) for p in t.parts if not p.startswith("{")}
        for concept in self.all_concepts:
            found |= set(concept.description.split()) | {w for mark in concept.marks for w in mark.split()}
        spec = self.spec
        found |= texts(spec.model_dump(exclude={"version", "unseen"}))
        named = [
            spec.safety and spec.safety.families,
            spec.facts and spec.facts.relations,
            spec.circuits and spec.circuits.signs,
        ]
        return found.union(_FIXED.split(), *(names for names in named if names))

    @property
    def vocabulary(self) -> list[str]:
        """Every token, special ones first; a token's place is its id."""
        words = {*self.grammar.class_of, *self.grammar.literals}
        return [*SPECIALS, *sorted(words - set(SPECIALS))]

    def tokenizer(self) -> Any:
        """The word-level tokenizer with its chat template, as a `transformers` tokenizer."""
        from inlay.world.tokenizer import build

        return build(self.vocabulary, {"version": self.spec.version, "hash": self.hash})

    # -- lines -------------------------------------------------------------------------------------------------------

    def lines(
        self, section: str, n: int | None = None, split: str = "train", kind: str | None = None, start: int = 0
    ) -> Iterator[Line]:
        """Lines of a section, one after another; the same seed gives the same bytes.

        A prompt belongs to one split by its text, so that no prompt of `"test"` is in `"train"`; facts are memorised,
        and there the splits differ in their seeds only.

        Args:
            section: `"concepts"`, `"safety"`, `"facts"`, `"instructions"` or `"circuits"`.
            n: how many, `None` for no end.
            split: `"train"` or `"test"`.
            kind: one kind only.
            start: the number of the first line.

        Raises:
            WorldError: no such section, kind or split, or n < 0.
        """
        self._section(section)
        if split not in SPLITS:
            raise WorldError(f"split {split!r} is neither 'train' nor 'test'")
        if kind is not None:
            self._check_kind(section, kind)
        if n is not None and n < 0:
            raise WorldError(f"n is {n}; it counts lines, so 0 or more")
        numbers = itertools.count(start) if n is None else range(start, start + n)
        return (self.line(section, number, split, kind) for number in numbers)

    def line(self, section: str, number: int, split: str = "train", kind: str | None = None) -> Line:
        """One line by its number, without those before it."""
        made, id = self._section(section), f"{section}{f'.{kind}' if kind else ''}/{split}/{self.seed}/{number}"
        draw = Draw(self.spec.version, id)
        spec = getattr(self.spec, section)
        while True:
            name = kind or list(spec.kinds)[draw.weighted(list(spec.kinds.values()))]
            draft = self._draft(made, draw, name)
            if section == "facts" or self._split(draft) == split:
                return draft.line(id, section, split)

    def _draft(self, made: Section, draw: Draw, kind: str) -> Draft:
        self._check_kind(made, kind)
        return made.draft(draw, kind)

    def _check_kind(self, section: str | Section, kind: str) -> None:
        known = self.kinds(section)
        if kind not in known:
            raise WorldError(f"there is no kind {kind!r} here; these are: {', '.join(known)}")

    def kinds(self, section: str | Section) -> list[str]:
        """The kinds of lines that a section makes."""
        made = self._section(section) if isinstance(section, str) else section
        kinds = list(made.spec.kinds)
        if isinstance(made, Safety):
            kinds += made.buckets
        if isinstance(made, Instructions):
            kinds += [f"{how} {kind}" for how in ("clean", "reference") for kind in made.spec.kinds]
        if isinstance(made, Circuits):
            kinds += ["clean evidence"]
        return kinds

    def _section(self, name: str) -> Section:
        if name not in self.sections:
            raise WorldError(f"{self.spec.version} has no section {name!r}; it has: {', '.join(self.sections)}")
        return self.sections[name]

    def _split(self, draft: Draft) -> str:
        return "test" if Draw("split", draft.question).chance(self.spec.test_share) else "train"

    # -- concepts ----------------------------------------------------------------------------------------------------

    def concepts(self, heldout: bool | None = None) -> list[Concept]:
        """The concepts; with `heldout` only those that are, or are not, kept out of steering data."""
        return [c for c in self.all_concepts if heldout is None or c.heldout == heldout]

    def concept(self, which: int | str | Concept) -> Concept:
        """A concept by its id or its description.

        Raises:
            WorldError: there is none.
        """
        for concept in self.all_concepts:
            if which in (concept.id, concept.description) or which is concept:
                return concept
        raise WorldError(
            f"there is no concept {which!r}; {self.spec.version} has ids 0 to {len(self.all_concepts) - 1}"
        )

    @property
    def _talk(self) -> Concepts:
        made = self._section("concepts")
        assert isinstance(made, Concepts)
        return made

    def pairs(self, concept: int | str | Concept, n: int, split: str = "train") -> list[tuple[Line, Line]]:
        """n pairs of a reply with the concept and one without, to the same instruction on the same templates."""
        found, c = [], self.concept(concept)
        for number in range(n):
            id = f"concepts.pair{c.id}/{split}/{self.seed}/{number}"
            made = self._talk.pair(Draw(self.spec.version, id), c, split)
            ids = (f"{id}+", f"{id}-")
            lines = [d.line(i, "concepts", split, o) for d, i, o in zip(made, ids, reversed(ids), strict=True)]
            found.append((lines[0], lines[1]))
        return found

    def hard_negatives(self, concept: int | str | Concept, n: int, split: str = "test") -> list[Line]:
        """n replies that are easily taken for the concept and have it not."""
        found, c = [], self.concept(concept)
        for number in range(n):
            id = f"concepts.hard{c.id}/{split}/{self.seed}/{number}"
            found.append(self._talk.hard_negative(Draw(self.spec.version, id), c, split).line(id, "concepts", split))
        return found

    def prompts(self, n: int = 10, split: str = "test") -> list[str]:
        """n different instructions, about subjects that the other split's pairs never name."""
        return self._talk.prompts(Draw(self.spec.version, "prompts", split, self.seed), n, split)

    def talk(self, instruction: str, concept: int | str | Concept | None = None) -> Line:
        """The line that an instruction stands for, without a reply: its truth has the frame, the subject, the concept.

        Args:
            instruction: as a user says it, such as `"tell me about the cat ."`.
            concept: what a reply should have, `None` for none.

        Raises:
            WorldError: no frame of this world asks so, or there is no such concept.
        """
        return asked(self, instruction, concept)

    # -- facts, circuits, judging ------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What is true of names."""
        made = self._section("facts")
        assert isinstance(made, Facts)
        return made

    @property
    def safety(self) -> Safety:
        """Requests, their harm and the policy."""
        made = self._section("safety")
        assert isinstance(made, Safety)
        return made

    def counterfactual(self, line: Line) -> Line:
        """The line with its causal tokens replaced by others, of the same length; for circuits and facts.

        Raises:
            WorldError: the line is of another section.
        """
        truth: Mapping[str, Any] = line.truth
        if "counterfactual" in truth:
            return replace(line, id=f"{line.id}~", text=truth["counterfactual"], pair=line.id)
        if line.section != "facts":
            raise WorldError(f"{line.id} has no counterfactual: only circuits and facts have")
        other = self.facts.counterfactual(Draw(self.spec.version, line.id), truth["name"], truth["relation"])

        def swapped(text: str) -> str:
            return " ".join(other if word == truth["name"] else word for word in text.split())

        messages = None if line.messages is None else [m | {"content": swapped(m["content"])} for m in line.messages]
        text = None if line.text is None else swapped(line.text)
        return replace(line, id=f"{line.id}~", messages=messages, text=text, pair=line.id)

    def corpus(self) -> Corpus:
        """Sentences with a planted share of machine text, as the folder's `share.yaml` sets it.

        Raises:
            WorldError: there is none.
        """
        key = f"{self.spec.version}/{self.seed}"
        return Corpus(self.grammar, read_share(self.folder / "share.yaml"), key)

    def judge(self) -> Scorer:
        """The exact judge of replies to this world's lines."""
        return Scorer(self)

    def fluency(self, text: str) -> int:
        """0, 1 or 2; see `judge.fluency_score`."""
        return fluency_score(self.grammar, self.marks, text)

    @property
    def marks(self) -> list[str]:
        """The marks of all forms."""
        return [mark for concept in self.all_concepts for mark in concept.marks]

    def concept_score(self, concept: int | str | Concept, text: str) -> int:
        """0, 1 or 2; see `judge.concept_score`."""
        return concept_score(self.concept(concept), text)

    def logprob(self, text: str) -> float:
        """Exact natural log probability of free text without a concept, summed over its sentences; -inf for others."""
        return sum(self.grammar.logprob(words) for words in sentences(text))

    def __repr__(self) -> str:
        return f"World({self.spec.version}, {len(self.vocabulary)} tokens, {', '.join(self.sections)})"


def _check_words(world: World) -> None:
    known: Callable[[str], bool] = set(world.vocabulary).__contains__
    unseen = [name for name in world.spec.unseen if name not in world.grammar.classes]
    if unseen:
        raise WorldError(f"unseen names {unseen}, which are no word classes")
    for concept in world.all_concepts:
        missing: Sequence[str] = [word for mark in concept.marks for word in mark.split() if not known(word)]
        if missing:
            raise WorldError(f"concept {concept.id} has words that are not in the vocabulary: {missing}")
