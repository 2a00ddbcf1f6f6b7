"""A learned mixture of an LLM's normalised layers for each group of attention layers."""

from llmdiff.language.llm import DecoderLLM
from llmdiff_lab.rivals.layer_weights import LayerWeights


class RoutedMean(LayerWeights):
    """One learned weight per block for each group d of the denoiser's attention layers:

        c_d = sum_{l=1..L} softmax_l(gamma_d)_l LN(x_l)

    Shapes: gamma (L, d).
    Source: arXiv 2602.03510, a mixture of the LLM's normalised layers for each block of the denoiser, the best of its
        controlled comparison. There the denoiser is trained from nothing and has a mixture for each block; here it is
        frozen, and groups are those of our own routing.
    """

    def __init__(self, llm: DecoderLLM, *, groups: int, template: str | None = None) -> None:
        super().__init__(llm, template=template, groups=groups)
