"""The engine: load a model, name its Sites, read and edit them, and leave nothing behind."""

from inlay.model.activations import Activations
from inlay.model.call import Call
from inlay.model.load import load
from inlay.model.model import Model, Output
from inlay.model.resume import States
from inlay.model.sites import Site
from inlay.model.tokens import Tokens, span

__all__ = ["Activations", "Call", "Model", "Output", "Site", "States", "Tokens", "load", "span"]
