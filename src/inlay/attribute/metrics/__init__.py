"""Metrics of attributions: whether what the scores put first is what the model's number hangs on."""

from inlay.attribute.metrics.columns import COLUMNS
from inlay.attribute.metrics.faithfulness import faithfulness
from inlay.attribute.metrics.table import Faithfulness

__all__ = ["COLUMNS", "Faithfulness", "faithfulness"]
