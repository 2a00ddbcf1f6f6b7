"""Suites of prompts: the scenes, a user's own, and DPG-Bench, GenEval and T2I-CompBench in their official formats.

The benchmarks' files are the user's to get; none of their text is part of this library. Each suite has its prompts and
may have a scorer; `llmdiff.evaluation.report` draws, scores and reports any of them.
"""
