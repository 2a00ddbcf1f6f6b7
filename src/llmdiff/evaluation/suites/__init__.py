"""Suites of prompts: the scenes, a user's own, and published benchmarks in their official formats.

Users download the benchmarks' files; this library contains none of their texts. A suite has prompts and may have a
scorer; `llmdiff.evaluation.report` draws, scores and reports.
"""
