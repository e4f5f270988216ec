"""Pictures of scores: tokens as HTML, in a terminal and in LaTeX; layers, steps and heads as grids."""

from inlay.attribute.pictures.heads import head_figure, head_html
from inlay.attribute.pictures.html import token_fragment, token_html
from inlay.attribute.pictures.latex import token_latex
from inlay.attribute.pictures.matrix import matrix_figure, matrix_html, step_figure, step_html
from inlay.attribute.pictures.terminal import token_terminal

__all__ = [
    "head_figure",
    "head_html",
    "matrix_figure",
    "matrix_html",
    "step_figure",
    "step_html",
    "token_fragment",
    "token_html",
    "token_latex",
    "token_terminal",
]
