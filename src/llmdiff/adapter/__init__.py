"""Encoding -> denoiser: the trained adapter, its attention processors, attach and detach."""

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import Installation, attach, check_fits, detach, install, is_attached
from llmdiff.adapter.families import FAMILIES, Family, family_of
from llmdiff.adapter.processors import CrossAttentionBranch, TwoBranchAttnProcessor

__all__ = [
    "FAMILIES",
    "CrossAttentionBranch",
    "Family",
    "Installation",
    "LLMDiffAdapter",
    "TwoBranchAttnProcessor",
    "attach",
    "check_fits",
    "detach",
    "family_of",
    "install",
    "is_attached",
]
