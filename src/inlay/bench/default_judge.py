"""The judges that a run has where none is given: none of them needs another model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.bench.concept_set import ConceptSet
from inlay.judges.judge import Judge

if TYPE_CHECKING:
    from inlay.model.model import Model


def judges_for(model: Model, concepts: ConceptSet) -> Judge:
    """The judge that needs no other model: a world's own truth, or `judge_by_words`.

    Args:
        model: as in `judge_by_words`.
        concepts: the set.
    """
    from inlay.judges import WorldJudge

    return judge_by_words(model, concepts) if concepts.world is None else WorldJudge(concepts.world)


def judge_by_words(model: Model, concepts: ConceptSet) -> Judge:
    """The set's lexicons for the concept; the model's log-probabilities for fluency and, by yes or no, instruction.

    Args:
        model: what rates.
        concepts: the set, whose lexicons count.

    Raises:
        ModelError: the model's tokenizer does not tell yes from no.
    """
    from inlay.judges import LexiconJudge, LogprobJudge, combined

    words = LexiconJudge({c.name: c.lexicon for c in concepts.concepts})
    own = LogprobJudge(model, axes=("instruction", "fluency"))
    return combined(concept=words, instruction=own, fluency=own)
