"""Encoding -> denoiser: the trained adapter, its two-branch attention, attach and detach."""

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, check_fits, detach, is_attached
from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.families import FAMILIES, Family, family_of
from llmdiff.adapter.installation import Installation, install
from llmdiff.adapter.joint import JointTwoBranch
from llmdiff.adapter.processors import CrossAttentionBranch

__all__ = [
    "FAMILIES",
    "CrossAttentionBranch",
    "Family",
    "Installation",
    "JointTwoBranch",
    "LLMDiffAdapter",
    "TwoBranchAttention",
    "attach",
    "check_fits",
    "detach",
    "family_of",
    "install",
    "is_attached",
]
