"""The report of a run: one HTML page that needs nothing but itself, and tables for the terminal."""

from __future__ import annotations

from inlay.bench.report.page import render, summary, write
from inlay.bench.report.terminal import tables

__all__ = ["render", "summary", "tables", "write"]
