"""Training batches of a world: lines by the mixture, lots of like lengths, the same at every start.

Legend: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inlay.world.config import TrainConfig, Weights
from inlay.world.draw import Draw
from inlay.world.line import OPENING, Line
from inlay.world.world import World

if TYPE_CHECKING:
    from torch import Tensor

POOL = 4096  # lines that are sorted by length together
ANSWERS = ("answer", "item", "consequence")


@dataclass(frozen=True)
class Piece:
    """Rows of like lengths: `ids` int64 [R, T], padded with 0, and `weights` float32 [R, T], 0 on padding."""

    ids: Tensor
    weights: Tensor


class Stream:
    """Steps of a training, each a list of Pieces.

    Args:
        world: makes the lines.
        config: says which.
    """

    def __init__(self, world: World, config: TrainConfig) -> None:
        self.world, self.config = world, config
        self.id_of = {token: index for index, token in enumerate(world.vocabulary)}

    def steps(self, pool: int = 0, position: int = 0) -> Iterator[tuple[list[Piece], int, int]]:
        """The steps from a place on, without end; with each, the place of the next one."""
        while True:
            lots = self._lots(pool)
            count = len(lots) // self.config.pieces
            while position < count:
                mine = lots[position * self.config.pieces : (position + 1) * self.config.pieces]
                position += 1
                yield [self._piece(lot) for lot in mine], *((pool, position) if position < count else (pool + 1, 0))
            pool, position = pool + 1, 0

    def _lots(self, pool: int) -> list[list[Line]]:
        """A pool of lines cut into lots of like lengths, in random order."""
        lines = sorted((self._line(pool * POOL + i) for i in range(POOL)), key=lambda line: len(line.tokens))
        room = self.config.batch_tokens // self.config.pieces
        lots: list[list[Line]] = [[]]
        for line in lines:
            if lots[-1] and (len(lots[-1]) + 1) * len(line.tokens) > room:
                lots.append([])
            lots[-1].append(line)
        return Draw(self.world.spec.version, "lots", self.config.seed, pool).shuffled(lots)

    def _line(self, number: int) -> Line:
        mixture = self.config.mixture
        draw = Draw(self.world.spec.version, "mixture", self.config.seed, number)
        section, _, kind = list(mixture)[draw.weighted(list(mixture.values()))].partition(".")
        return self.world.line(section, number, "train", kind or None)

    def _piece(self, lines: Sequence[Line]) -> Piece:
        import torch

        longest = max(len(line.tokens) for line in lines)
        ids = torch.zeros(len(lines), longest, dtype=torch.long)
        weights = torch.zeros(len(lines), longest)
        for row, line in enumerate(lines):
            tokens = line.tokens
            ids[row, : len(tokens)] = torch.tensor([self.id_of[token] for token in tokens])
            weights[row, : len(tokens)] = torch.tensor(token_weights(line, self.config.weights))
        return Piece(ids, weights)


def token_weights(line: Line, weights: Weights) -> list[float]:
    """What each token of a line counts in the loss."""
    if line.messages is None:
        found = [weights.text] * len(line.tokens)
    else:
        found = [0.0]
        for message in line.messages:
            words = len(message["content"].split()) + 1
            if message["role"] == "assistant":
                found += [weights.user] * len(OPENING) + [weights.reply] * words
            else:
                found += [weights.user] * (words + 1)
    for span in line.spans:
        if span.label in ANSWERS:
            found[span.start : span.end] = [weights.answer] * (span.end - span.start)
    return found
