"""Concepts: unsteered talk, the prompt baseline, detection and steering by a difference of means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from inlay.interventions.bank import Bank
from inlay.interventions.closed_form import Add
from inlay.interventions.edit import Edit
from inlay.model.model import Model
from inlay.world.asked import asked
from inlay.world.checks.row import Row, auroc, ids, replies
from inlay.world.concept import Concept
from inlay.world.draw import Draw
from inlay.world.judge import concept_score
from inlay.world.line import Line
from inlay.world.world import World

STRENGTHS = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0)  # in mean lengths of a state
PREFIX = 2  # bos and user, which every chat begins with


def rows(model: Model, world: World) -> list[Row]:
    """The table's rows on concepts."""
    directions = Directions(model, world)
    return [*unsteered(model, world), *directions.detection(), *directions.steering()]


def unsteered(model: Model, world: World) -> list[Row]:
    """Plain talk, and talk that is asked for a concept."""
    lines = list(world.lines("concepts", 200, "test", "talk"))
    said = replies(model, [line.prompt for line in lines])
    scores = world.judge().score(lines, said)
    concepts = world.concepts()
    by_chance = fmean(concept_score(c, text) for c in concepts for text in said)
    prompts = _prompts(world)
    ask = world.spec.concepts.ask if world.spec.concepts else ""
    asked = [(c, p) for c in concepts for p in prompts]
    texts = replies(model, [f"{p} {ask.format(description=c.description)}" for c, p in asked])
    prompted = fmean(score(world, c, p, text) for (c, p), text in zip(asked, texts, strict=True))
    return [
        Row("concepts", "fluency of 200 unsteered replies", scores["fluency"].mean or 0.0, least=1.9),
        Row("concepts", "instruction score of the same", scores["instruction"].mean or 0.0, least=1.9),
        Row("concepts", "concept score of the same", by_chance, most=0.1),
        Row("concepts", "prompt baseline, overall", prompted, least=1.2),
    ]


def score(world: World, concept: Concept, instruction: str, text: str) -> float:
    """The overall score of a reply to an instruction: concept, instruction and fluency."""
    return world.judge().one(asked(world, instruction, concept), text)["overall"]


def _prompts(world: World) -> list[str]:
    """Ten prompts, or as many as the world has."""
    spec = world.spec.concepts
    assert spec is not None
    return world.prompts(min(10, len(world.frames) * spec.subjects))


class Directions:
    """Differences of means for every held-in concept at every layer, from pairs of the training split.

    Attributes:
        vectors: [layers, concepts, width]; `units` are of length 1.
        lengths: mean length of a state at each layer, [layers].
    """

    def __init__(self, model: Model, world: World, pairs: int = 72) -> None:
        self.model, self.world = model, world
        self.concepts = world.concepts(heldout=False)
        self.train = {c.id: world.pairs(c, pairs, "train") for c in self.concepts}
        vectors, lengths = [], []
        for concept in self.concepts:
            (with_it, length), (without, _) = map(self._means, zip(*self.train[concept.id], strict=True))
            vectors.append(with_it - without)
            lengths.append(length)
        self.vectors, self.lengths = torch.stack(vectors, 1), torch.stack(lengths, 1).mean(1)
        self.units = torch.nn.functional.normalize(self.vectors, dim=-1)

    def _tokens(self, lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
        """States [layers, rows, tokens, width] of whole chats without their first two tokens, and which are real."""
        acts = self.model.read([ids(self.model, line.tokens) for line in lines], "resid_post.*", tokens="all")
        assert acts.mask is not None
        return acts.stack()[:, :, PREFIX:].float(), acts.mask[:, PREFIX:]

    def _means(self, lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
        """Mean state and mean length of a state over the tokens of replies, [layers, width] and [layers]."""
        prompts, said = [line.prompt for line in lines], [line.reply for line in lines]
        acts = self.model.read(prompts, "resid_post.*", tokens="response", responses=said)
        assert acts.mask is not None
        states, count = acts.stack().float(), acts.mask.sum()
        mean = (states * acts.mask[..., None]).sum((1, 2)) / count
        return mean, (states.norm(dim=-1) * acts.mask).sum((1, 2)) / count

    def _scores(self, lines: Sequence[Line], index: int) -> Tensor:
        """The largest projection over a line's tokens, [layers, lines]."""
        states, mask = self._tokens(lines)
        along = torch.einsum("lrtw,lw->lrt", states, self.units[:, index])
        return along.masked_fill(~mask, -torch.inf).amax(-1)

    # -- detection ---------------------------------------------------------------------------------------------------

    def detection(self) -> list[Row]:
        """AUROC on held-out pairs at each concept's best layer on the training half, beside two baselines."""
        found: dict[str, list[float]] = {"easy": [], "hard": [], "words": [], "words, hard": [], "length": []}
        layers = []
        for index, concept in enumerate(self.concepts):
            mine = self.train[concept.id]
            train = [self._scores([pair[side] for pair in mine], index) for side in (0, 1)]
            on_train = [auroc(p.tolist(), n.tolist()) for p, n in zip(*train, strict=True)]
            layer = on_train.index(max(on_train))
            layers.append(layer)
            positive, negative = zip(*self.world.pairs(concept, 36, "test"), strict=True)
            twins = [other for other in self.world.concepts() if concept.twin_of(other)]
            hard = self.world.hard_negatives(concept, 10) if twins else list(negative)
            by_layer = [self._scores(lines, index)[layer].tolist() for lines in (positive, negative, hard)]
            found["easy"].append(auroc(by_layer[0], by_layer[1]))
            found["hard"].append(auroc(by_layer[0], by_layer[2]))
            words = bag_of_words(mine)
            by_words = [words([line.reply for line in lines]) for lines in (positive, negative, hard)]
            found["words"].append(auroc(by_words[0], by_words[1]))
            found["words, hard"].append(auroc(by_words[0], by_words[2]))
            lengths = [[float(len(line.tokens)) for line in lines] for lines in (positive, negative)]
            found["length"].append(auroc(*lengths))
        easy = fmean(found["easy"])
        note = f"layers {min(layers)} to {max(layers)}"
        return [
            Row("concepts", "DiffMean detection, mean AUROC of 30 held-in concepts", easy, least=0.95, note=note),
            Row("concepts", "the same above length alone", easy - fmean(found["length"]), least=0.2),
            Row("concepts", "DiffMean against hard negatives", fmean(found["hard"])),
            Row("concepts", "bag of words, easy", fmean(found["words"])),
            Row("concepts", "bag of words, hard", fmean(found["words, hard"])),
        ]

    # -- steering ----------------------------------------------------------------------------------------------------

    def steering(self) -> list[Row]:
        """Overall score of steered talk, beside random directions of the same length at the same places.

        Half of the prompts choose layer and strength for each concept; the scores are those of the others.
        """
        prompts = _prompts(self.world)
        half = len(prompts) // 2
        chosen = self._chosen(prompts[:half])
        random = torch.nn.functional.normalize(
            torch.randn(self.vectors.shape, generator=torch.Generator().manual_seed(0)), dim=-1
        )
        ours, theirs = (self._steered(units, chosen, prompts[half:]) for units in (self.units, random))
        gain = [a - b for a, b in zip(ours, theirs, strict=True)]
        draw = Draw("bootstrap")
        means = sorted(fmean([draw.pick(gain) for _ in gain]) for _ in range(1000))
        layers = [layer for layer, _ in chosen]
        note = f"layers {min(layers)} to {max(layers)}"
        return [
            Row("concepts", "DiffMean steering, overall", fmean(ours), least=0.6, note=note),
            Row("concepts", "random directions, overall", fmean(theirs)),
            Row("concepts", "gain over random, lower end of 95 % interval", means[25], least=1e-9),
        ]

    def _chosen(self, prompts: Sequence[str]) -> list[tuple[int, float]]:
        """The layer and strength of each concept with the best mean score on some prompts."""
        best: list[tuple[float, tuple[int, float]]] = [(-1.0, (0, 0.0))] * len(self.concepts)
        for layer in range(len(self.vectors)):
            for strength in STRENGTHS:
                scores = self._steered(self.units, [(layer, strength)] * len(self.concepts), prompts)
                best = [max(old, (new, (layer, strength))) for old, new in zip(best, scores, strict=True)]
        return [at for _, at in best]

    def _steered(self, units: Tensor, at: Sequence[tuple[int, float]], prompts: Sequence[str]) -> list[float]:
        """Each concept's mean score on some prompts, steered at a layer with a multiple of its states' mean length."""
        found = [0.0] * len(self.concepts)
        for layer in sorted({layer for layer, _ in at}):
            mine = [index for index, (here, _) in enumerate(at) if here == layer]
            vectors = [units[layer, index] * self.lengths[layer] * at[index][1] for index in mine]
            asked = [(row, prompt) for row in range(len(mine)) for prompt in prompts]
            said = replies(
                self.model,
                [prompt for _, prompt in asked],
                new=36,
                batch=len(asked),
                edit=Edit(f"resid_post.{layer}", Bank([Add(v) for v in vectors]), tokens="all"),
                rows=[row + 1 for row, _ in asked],
            )
            for (row, prompt), text in zip(asked, said, strict=True):
                concept = self.concepts[mine[row]]
                found[mine[row]] += score(self.world, concept, prompt, text) / len(prompts)
        return found


def bag_of_words(pairs: Sequence[tuple[Line, Line]]) -> Callable[[list[str]], list[float]]:
    """A scorer of texts by their word counts, fitted on pairs: logistic regression (AxBench's settings)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = [line.reply for pair in pairs for line in pair]
    fitted = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(C=100, max_iter=1000))
    fitted.fit(texts, [1, 0] * len(pairs))
    return lambda said: [float(p) for p in fitted.predict_proba(said)[:, 1]]
