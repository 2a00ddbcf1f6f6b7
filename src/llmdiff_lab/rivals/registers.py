"""All layers of an LLM through one linear layer, with learned registers in place of padding."""

import torch
from torch import nn

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.layer_weights import AllLayers


class Registers(AllLayers):
    """All layers of a token through one linear layer, and learned rows up to a fixed length:

        c_t = W [LN(x_1) ; ... ; LN(x_L)]_t      for the tokens t of the text
        c_t = r_{t mod R}                        for all others

    The text is padded with registers to a multiple of R rows, and every row is read. Registers can store information
    that belongs to no word.

    Shapes: x (B, T, L * D) => (B, R * ceil(T / R), D); r (R, D).
    Source: LTX-2 (Lightricks/LTX-2), whose text connector flattens all layers of Gemma 3 into one linear layer and puts
        learned registers (128) instead of padding before bidirectional blocks, which here are our adapter's refiner.
    """

    learns_in_every_step = True

    def __init__(self, llm: DecoderLLM, *, registers: int = 32, template: str | None = None) -> None:
        super().__init__(llm, template=template)
        self.project = nn.Linear(llm.num_blocks * llm.hidden_size, llm.hidden_size, bias=False)
        self.registers = nn.Parameter(torch.randn(registers, llm.hidden_size))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return c; every row is real. Shapes: (B, T, L * D) => (B, R * ceil(T / R), D)."""
        mask = raw.token_mask.to(self.registers.device)
        count, tokens = len(self.registers), mask.shape[1]
        filling = self.registers.repeat(-(-tokens // count), 1)
        states = self.project(raw.states.to(self.registers.device))
        text = torch.where(mask[..., None], states, filling[:tokens])
        rest = filling[tokens:].expand(len(text), -1, -1)
        c = torch.cat([text, rest], dim=1)
        return TextEncoding(states=c, token_mask=torch.ones(c.shape[:2], dtype=torch.bool, device=c.device))
