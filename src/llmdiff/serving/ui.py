"""The web page, built with gradio: a prompt, settings, base and LLM side by side, a gallery."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from llmdiff.drawing.models import scale_of
from llmdiff.serving import ui_html
from llmdiff.serving.errors import ApiError, install_error_handlers
from llmdiff.serving.picture_store import PictureStore
from llmdiff.serving.settings import UiSettings
from llmdiff.serving.studio import Studio
from llmdiff.serving.ui_drawer import MAX_PROMPT, Drawer, gradio
from llmdiff.serving.ui_examples import EXAMPLES

_OWN = "the adapter's own"
_STORE_BYTES = 256 * 1024 * 1024
_LIFETIME_S = 6 * 3600.0
_INTRODUCTION = (
    "# LLMDiff\nThe same prompt and the same seeds, drawn twice by one diffusion model: with its own text encoder, "
    "and with a decoder-only LLM in control."
)


def add_page(app: FastAPI, studio: Studio, settings: UiSettings) -> Callable[[], None]:
    """Add the page at / and its pictures at /pictures/ to the app; return a function that ends open connections."""
    gr = gradio()
    store = PictureStore(max_bytes=_STORE_BYTES, lifetime_s=_LIFETIME_S)

    @app.get("/pictures/{name}.png")
    def picture(name: str) -> Response:
        png = store.get(name)
        if png is None:
            raise ApiError(404, "there is no such picture, or it has expired", code="not_found")
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(png, media_type="image/png", headers=headers)

    install_error_handlers(app)
    gr.mount_gradio_app(
        app,
        build_page(Drawer(studio, store, settings), settings),
        path="/",
        # No external links, no history in the browser, no monitoring.
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
        # System fonts, as others would have to be downloaded; readable small print.
        theme=gr.themes.Default(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ).set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400"),
        css=ui_html.CSS,
    )
    page: Any = app.routes[-1]
    # Gradio ends the connections of open pages only at this event.
    end: Callable[[], None] = page.app.stop_event.set
    return end


def build_page(drawer: Drawer, settings: UiSettings) -> Any:
    """Return the page as gradio's blocks, with a queue of `settings.queue_size`."""
    gr = gradio()
    plain = {"js_on_load": None, "apply_default_css": False}
    with gr.Blocks(title="LLMDiff", analytics_enabled=False) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                prompt = gr.Textbox(
                    label="Prompt",
                    lines=3,
                    max_length=MAX_PROMPT,
                    value=EXAMPLES["Relations: what is where"][0],
                    elem_id="prompt",
                )
                negative = gr.Textbox(
                    label="Negative prompt",
                    info="What not to draw.",
                    max_length=MAX_PROMPT,
                    elem_id="negative",
                )
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    stop = gr.Button("Stop", elem_id="stop")
                gr.HTML(ui_html.hint(_queue_words(settings.queue_size)), **plain)
            with gr.Column(scale=4, min_width=320):
                status = gr.HTML(
                    ui_html.status("Ready. Write a prompt, or choose one below."),
                    elem_id="status",
                    js_on_load=None,
                )
                sides = gr.HTML(ui_html.nothing_yet(), elem_id="sides", **plain)
        order = _settings_inputs(gr, settings)
        with gr.Accordion("Examples", open=True):
            for kind, prompts in EXAMPLES.items():
                gr.Examples([[one] for one in prompts], inputs=[prompt], label=kind, preload=False)
        gr.Markdown("## Gallery")
        gallery = gr.HTML(ui_html.gallery([]), elem_id="gallery", **plain)
        kept = gr.State([], time_to_live=_LIFETIME_S)
        drawing = gr.on(
            [draw.click, prompt.submit],
            drawer.draw,
            inputs=[prompt, negative, *order, kept],
            outputs=[status, sides, gallery, kept],
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
        )
        # No status text of its own: the drawing's last status may arrive later and would overwrite it.
        stop.click(None, cancels=[drawing], api_visibility="private")
    page.queue(max_size=settings.queue_size, default_concurrency_limit=1, api_open=False)
    return page


def _settings_inputs(gr: Any, settings: UiSettings) -> list[Any]:
    with gr.Accordion("Settings", open=True), gr.Row():
        seed = gr.Textbox(
            label="Seed", info="Empty: a new one.", max_length=19, min_width=200, elem_id="seed"
        )
        number = gr.Slider(
            1,
            settings.max_number,
            1,
            step=1,
            label="Number",
            info="From seeds in a row.",
            min_width=200,
            elem_id="number",
        )
        steps = gr.Slider(1, settings.max_steps, 20, step=1, label="Steps", min_width=200, elem_id="steps")
        guidance = gr.Slider(0, 20, 3, step=0.1, label="Guidance scale", min_width=200)
        scale = gr.Slider(
            0,
            1,
            scale_of(settings.first_models),
            step=0.05,
            label="Scale of the LLM",
            info="0: the base alone, 1: the LLM alone.",
            min_width=200,
            elem_id="scale",
        )
    choices = len(settings.adapters + settings.llms + settings.pipelines)
    with gr.Accordion("Models", open=choices > 1), gr.Row():
        adapter = gr.Dropdown(list(settings.adapters), value=settings.adapters[0], label="Adapter")
        llm, pipeline = (
            gr.Dropdown([(_OWN, ""), *((name, name) for name in names)], value="", label=label)
            for label, names in (("LLM", settings.llms), ("Pipeline", settings.pipelines))
        )
    adapter.change(
        lambda name: scale_of(settings.models(name)), adapter, scale, api_visibility="private", queue=False
    )
    return [seed, number, steps, guidance, scale, adapter, llm, pipeline]


def _queue_words(queue_size: int) -> str:
    drawings = "drawing" if queue_size == 1 else "drawings"
    return (
        f"One drawing at a time; up to {queue_size} {drawings} may wait in line. When the line is full, the page "
        "says so: try again a little later."
    )
