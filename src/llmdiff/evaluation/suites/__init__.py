"""Suites of prompts: the scenes, a user's own, and published benchmarks in their official formats.

Users download the benchmarks' files; none of their text is part of this library. A suite has prompts and may have a
scorer; `llmdiff.evaluation.report` draws, scores and reports any of them.
"""
