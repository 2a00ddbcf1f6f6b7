"""Attach to joint attention, where text and image share one softmax.

The paper covers cross-attention only. Joint attention is our extension: phi(c), through the transformer's own
text embedder, replaces the text stream, and a second attention, from image states to c, is added to the joint
attention's output for the image stream. The layer's own processor computes the joint attention, whichever it is.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llmdiff.adapter.joint_text import JointText
from llmdiff.adapter.layout import of_group
from llmdiff.adapter.masks import as_bias
from llmdiff.adapter.processors import AttachedLayer, CrossAttentionBranch, KeysValues
from llmdiff.adapter.split import SplitText
from llmdiff.errors import AttachError, UnsupportedPipelineError

# Those that torch's attention takes by place.
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class JointTwoBranch(AttachedLayer):
    """Joint attention of image and phi(c), with the new branch from image states to c.

        image = JointAttn(image, text)_image * a1*exp(b1)  +  Attn(q(image), k(c), v(c)) * a2*exp(b2)
        text  = JointAttn(image, text)_text

    As `scale` goes to 0, a1*exp(b1) goes to 1 and a2*exp(b2) to 0. Image queries of the new branch pass the
    layer's own query norm but get no positional embedding, as c has no position in the image. In layers
    without a branch only the padding is masked. With routing, the new branch reads the c of the layer's group.

    Source: our extension of Dong et al. 2024 (arXiv 2502.04412) to joint attention.
    """

    def __init__(
        self,
        attn: Any,
        branch: CrossAttentionBranch | None,
        *,
        hook: SplitText,
        single_stream: bool,
        scale: float = 1.0,
        group: int = 0,
    ) -> None:
        super().__init__(attn, branch, scale=scale)
        self.hook = hook
        self.group = group
        self.single_stream = single_stream
        self.check()

    def check(self) -> None:
        """Accept any processor: `forward` sees whether it leaves padding out."""
        processor = self.attn.processor
        wanted = inspect.signature(type(processor).__call__).parameters
        self._hands_mask_on = "attention_mask" in wanted and hasattr(processor, "_attention_backend")

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        llm_text: JointText | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the layer's outputs: image states, or image and text states (and an IP-Adapter's).

        Raises:
            UnsupportedPipelineError: the layer's processor or attention backend takes no mask, and one is needed.
            AttachError: the layer is called while its denoiser does not run.
        """
        self.note_reading()
        given: Any = self.hook.handed if llm_text is None and self.hook.carrier is None else llm_text
        if given is None and self.hook.carrier is None:
            raise AttachError("an attached layer is called outside its denoiser: detach to use it alone")
        text = None if encoder_hidden_states is hidden_states else encoder_hidden_states
        streams = _streams(hidden_states, encoder_hidden_states, args)
        if not isinstance(given, JointText) or (text is None and not self.single_stream):
            return self.original(*streams, **kwargs)
        rows = hidden_states.shape[1] + (0 if text is None else text.shape[1])
        if given.bias is None:
            result = self.original(*streams, **kwargs)
        elif torch.compiler.is_compiling() and self._hands_mask_on and "kv_cache_mode" not in kwargs:
            # What follows would break the graph in two.
            mask = given.beside_image(rows, text_first=self.hook.family.text_first)
            masked = {"attention_mask": mask} if len(streams) < 3 else {}
            result = self.original(*streams[:2], *((mask, *args[1:]) if args else ()), **{**kwargs, **masked})
        else:
            biased = _RowBias(given, rows, text_first=self.hook.family.text_first)
            with biased:
                result = self.original(*streams, **kwargs)
            if biased.done < len(given.bias):
                backend = getattr(self.attn.processor, "_attention_backend", None)
                raise UnsupportedPipelineError(
                    f"a joint attention layer has the processor {type(self.attn.processor).__name__} and the attention "
                    f"backend {backend or 'native'}, which cannot leave padding out: unload what installed it, set "
                    'set_attention_backend("native"), or draw one prompt without a negative one'
                )
        if self.branch is None:
            return result
        return self._with_new_branch(hidden_states, result, given, alone=text is None)

    def _with_new_branch(self, states: Tensor, result: Any, text: JointText, *, alone: bool) -> Any:
        assert self.branch is not None
        branch = self.branch
        image = result[0] if isinstance(result, tuple) else result

        def read_own() -> tuple[KeysValues, Tensor, Tensor]:
            pretrained_gate, new_gate = branch.gates()
            own = self.biased(
                branch.read(of_group(text.llm_states, self.group, self.hook.layout.groups), text.seen)
            )
            # At scale 1: image * a1*exp(b1) + new * a2*exp(b2); at scale 0: image.
            return own, 1 + self.scale * (pretrained_gate - 1), self.scale * new_gate

        read, pretrained_share, new_share = self.kept(self.hook.source, (), read_own)
        new = branch.attend(states, read, norm=self.attn.norm_q, backend=self.backend)
        mixed = torch.addcmul(image * pretrained_share, new, new_share)
        if alone and text.counts is not None:
            # One stream of image, text and padding: only the image's rows change.
            start = text.counts if self.hook.family.text_first else torch.zeros_like(text.counts)
            place = torch.arange(states.shape[1], device=states.device) - start[:, None]
            is_image = (place >= 0) & (place < states.shape[1] - text.most)
            mixed = torch.where(is_image[..., None], mixed, image)
        return (mixed, *result[1:]) if isinstance(result, tuple) else mixed


def _streams(image: Tensor, text: Tensor | None, more: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a layer's arguments by place; the layers of a single stream have no place for the text."""
    return (image,) if text is None and not more else (image, text, *more)


class _RowBias(TorchFunctionMode):
    """Add the bias of the text's rows in the joint attention that runs within.

    Processors differ in what masks they take; all of them call torch's attention, where the bias is added: once for
    every row of the batch, as some processors (perturbed-attention guidance) attend to a part of it at a time.
    """

    def __init__(self, text: JointText, rows: int, *, text_first: bool) -> None:
        super().__init__()
        self.text, self.rows, self.text_first = text, rows, text_first
        self.done = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func is Tensor.unflatten:
            # Compiling torch's Python method of this name within a mode fails.
            return torch.unflatten(*args, **kwargs)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        bias, query, keys = self.text.bias, given["query"], given["key"].shape[-2]
        assert bias is not None
        if keys >= self.rows and self.done < len(bias):
            part = self.text.beside_image(keys, text_first=self.text_first)
            part = part[self.done : self.done + len(query)].to(query.dtype)
            self.done += len(query)
            theirs = given.get("attn_mask")
            given["attn_mask"] = part if theirs is None else as_bias(theirs, query.dtype) + part
        return func(**given)
