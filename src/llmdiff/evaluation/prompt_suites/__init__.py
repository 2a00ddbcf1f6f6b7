"""Suites of prompts from files: a user's own, and DPG-Bench, GenEval and T2I-CompBench in their official formats.

The benchmarks' files are the user's to get; none of their text is part of this library. `drawing` draws a suite, also
in several processes, `report` scores the pictures and writes the report.
"""
