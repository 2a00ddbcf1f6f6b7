"""The laboratory of LLMDiff: rivals, comparisons, the build of the embedded default, inspection and user studies."""
