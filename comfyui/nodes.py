"""The nodes. An input that a later version adds is optional, with the old behaviour as its default."""

from typing import Any

from comfy_api.latest import ComfyExtension, io

from . import base, encoding, folders
from .model import apply_adapter

LLM = io.Custom("LLMDIFF_LLM")
ADAPTER = io.Custom("LLMDIFF_ADAPTER")
_CATEGORY = "LLMDiff"


class LoadLLM(io.ComfyNode):
    """Choose an LLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="LLMDiffLoadLLM",
            display_name="Load LLM (LLMDiff)",
            category=_CATEGORY,
            description="A decoder-only LLM from models/text_encoders: a folder with config.json, tokenizer and "
            "safetensors, or a GGUF file. It is loaded when the first prompt is encoded.",
            inputs=[
                io.Combo.Input("llm_name", options=folders.llm_names()),
                io.Combo.Input("dtype", options=list(encoding.DTYPES), default="auto", optional=True),
            ],
            outputs=[LLM.Output(display_name="llm")],
        )

    @classmethod
    def execute(cls, llm_name: str, dtype: str = "auto") -> io.NodeOutput:
        """Return the LLM, not loaded yet."""
        return io.NodeOutput(encoding.llm_source(folders.located("text_encoders", llm_name), dtype))


class LoadAdapter(io.ComfyNode):
    """Load an adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="LLMDiffLoadAdapter",
            display_name="Load LLMDiff Adapter",
            category=_CATEGORY,
            description="An adapter from models/llmdiff: a folder that llmdiff train or save_pretrained has written.",
            inputs=[io.Combo.Input("adapter_name", options=folders.adapter_names())],
            outputs=[ADAPTER.Output(display_name="adapter")],
        )

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        """Return the adapter."""
        return io.NodeOutput(encoding.load_adapter(folders.located(folders.ADAPTERS, adapter_name)))


class ApplyLLMDiff(io.ComfyNode):
    """Put the LLM in control of a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        gain = {"default": 1.0, "min": -2.0, "max": 4.0, "step": 0.05, "optional": True}
        return io.Schema(
            node_id="LLMDiffApply",
            display_name="Apply LLMDiff",
            category=_CATEGORY,
            description="Adds the adapter's attention to the LLM's states to every cross-attention layer of the MODEL. "
            "Use the conditioning of LLMDiff Encode with it.",
            inputs=[
                io.Model.Input("model"),
                ADAPTER.Input("adapter"),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    **share,
                    tooltip="1: the LLM alone. 0: the model's own text encoder. Below 1, connect base of Encode.",
                ),
                io.Boolean.Input(
                    "keep_base_text",
                    default=False,
                    optional=True,
                    tooltip="Let the pretrained attention read the base text too, for the trigger words of a LoRA.",
                ),
                io.Float.Input("start_percent", default=0.0, **share, optional=True),
                io.Float.Input("end_percent", default=1.0, **share, optional=True),
                io.Float.Input(
                    "input_gain", **gain, tooltip="Factor of the LLM's attention in the input blocks."
                ),
                io.Float.Input("middle_gain", **gain, tooltip="The same in the middle block."),
                io.Float.Input("output_gain", **gain, tooltip="The same in the output blocks."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: encoding.LoadedAdapter,
        scale: float,
        keep_base_text: bool = False,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        input_gain: float = 1.0,
        middle_gain: float = 1.0,
        output_gain: float = 1.0,
    ) -> io.NodeOutput:
        """Return the MODEL with the adapter."""
        return io.NodeOutput(
            apply_adapter(
                model,
                adapter.adapter,
                adapter.digest,
                scale=scale,
                keep_base_text=keep_base_text,
                start_percent=start_percent,
                end_percent=end_percent,
                gains={"input": input_gain, "middle": middle_gain, "output": output_gain},
            )
        )


class Encode(io.ComfyNode):
    """Encode a prompt with the LLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="LLMDiffEncode",
            display_name="LLMDiff Encode",
            category=_CATEGORY,
            description="Encodes a prompt with the LLM. Use one for the prompt and one, often empty, for the negative.",
            inputs=[
                LLM.Input("llm"),
                ADAPTER.Input("adapter"),
                io.String.Input("text", multiline=True, dynamic_prompts=True),
                io.Conditioning.Input(
                    "base",
                    optional=True,
                    tooltip="The same prompt from CLIP Text Encode: for a scale below 1, keep_base_text or a range of "
                    "percents in Apply LLMDiff.",
                ),
                io.Boolean.Input(
                    "weighted",
                    default=True,
                    optional=True,
                    tooltip="Read (word:1.3) as a weight of the word.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=True,
                    optional=True,
                    tooltip="Refuse an LLM of another name than the adapter's. Off, if both are the same model.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls,
        llm: encoding.LLMSource,
        adapter: encoding.LoadedAdapter,
        text: str,
        base: Any = None,
        weighted: bool = True,
        strict: bool = True,
    ) -> io.NodeOutput:
        """Return the conditioning."""
        return io.NodeOutput(encoding.encode(llm, adapter, text, weighted=weighted, strict=strict, base=base))


class SaveEncoding(io.ComfyNode):
    """Save a conditioning to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="LLMDiffSaveEncoding",
            display_name="Save LLMDiff Encoding",
            category=_CATEGORY,
            description="Writes an encoding to output/llmdiff, so that its prompt can be drawn without the LLM.",
            inputs=[io.Conditioning.Input("conditioning"), io.String.Input("name", default="encoding")],
            outputs=[io.Conditioning.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning: Any, name: str) -> io.NodeOutput:
        """Return the conditioning unchanged, after writing it."""
        folders.save_encoding(conditioning, name)
        return io.NodeOutput(conditioning)


class LoadEncoding(io.ComfyNode):
    """Load a saved conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="LLMDiffLoadEncoding",
            display_name="Load LLMDiff Encoding",
            category=_CATEGORY,
            description="Reads an encoding from output/llmdiff: of Save LLMDiff Encoding, or of the command llmdiff "
            "encode. It needs the adapter that it was encoded with.",
            inputs=[ADAPTER.Input("adapter"), io.Combo.Input("name", options=folders.encoding_names())],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, **_: Any) -> float:
        """Return the file's time of change, so that a replaced file is read again."""
        return folders.encoding_changed(name)

    @classmethod
    def execute(cls, adapter: encoding.LoadedAdapter, name: str) -> io.NodeOutput:
        """Return the conditioning."""
        return io.NodeOutput(folders.load_encoding(name, adapter))


class LoadBase(io.ComfyNode):
    """Load a small diffusers base."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="LLMDiffLoadBase",
            display_name="Load LLMDiff Base",
            category=_CATEGORY,
            description="The embedded default's base, or a diffusers folder of the same layout from models/diffusers, "
            "with a latent of its own size. Load a released checkpoint with Load Checkpoint instead.",
            inputs=[io.Combo.Input("base_name", options=folders.base_names())],
            outputs=[io.Model.Output(), io.Vae.Output(), io.Latent.Output()],
        )

    @classmethod
    def execute(cls, base_name: str) -> io.NodeOutput:
        """Return MODEL, VAE and LATENT."""
        return io.NodeOutput(*base.load_base(folders.located("diffusers", base_name)))


class LLMDiffExtension(ComfyExtension):
    """All nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the classes of the nodes."""
        return [LoadLLM, LoadAdapter, ApplyLLMDiff, Encode, SaveEncoding, LoadEncoding, LoadBase]
