"""The web page, built with gradio: a prompt, settings, base and LLM side by side, a gallery."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from llmdiff.drawing.models import scale_of
from llmdiff.serving import ui_html
from llmdiff.serving.errors import ApiError, install_error_handlers
from llmdiff.serving.expiring_pictures import ExpiringPictures
from llmdiff.serving.settings import UiSettings
from llmdiff.serving.studio import Studio
from llmdiff.serving.ui_drawer import MAX_PROMPT, Drawer, gradio
from llmdiff.serving.ui_examples import EXAMPLES, OPENING, known_words, own_world

_OWN = "the adapter's own"
_STORE_BYTES = 256 * 1024 * 1024
_LIFETIME_S = 6 * 3600.0
_INTRODUCTION = (
    "# LLMDiff\nEvery prompt is drawn twice from the same seed: with the pipeline's own text encoder, and with an LLM "
    "in control."
)


def add_page(app: FastAPI, studio: Studio, settings: UiSettings) -> Callable[[], None]:
    """Add the page at / and its pictures at /pictures/ to the app; return a function that ends open connections."""
    gr = gradio()
    store = ExpiringPictures(max_bytes=_STORE_BYTES, lifetime_s=_LIFETIME_S)

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
    opening = drawer.opening()
    with gr.Blocks(title="LLMDiff", analytics_enabled=False) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row(elem_id="ask"):
            # With one line, Enter draws; Shift+Enter begins a new line.
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="Describe a picture.",
                lines=1,
                max_lines=6,
                max_length=MAX_PROMPT,
                value=OPENING if opening else "",
                scale=6,
                min_width=300,
                elem_id="prompt",
            )
            draw = gr.Button("Draw", variant="primary", scale=1, min_width=90, elem_id="draw")
            stop = gr.Button("Stop", scale=1, min_width=70, elem_id="stop")
        status = gr.HTML(
            ui_html.status(
                "This is an example. Write your own prompt, or choose another example."
                if opening
                else "Ready."
            ),
            elem_id="status",
            js_on_load=None,
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                sides = gr.HTML(
                    ui_html.sides([opening[0].seed], opening) if opening else ui_html.nothing_yet(),
                    elem_id="sides",
                    **plain,
                )
            if own_world(settings.adapters[0]):
                with gr.Column(scale=2, min_width=300):
                    _example_inputs(gr, prompt)
        order, again = _settings_inputs(gr, settings)
        gr.Markdown("## Gallery")
        gallery = gr.HTML(ui_html.gallery([]), elem_id="gallery", **plain)
        gr.HTML(ui_html.hint(_queue_words(settings.queue_size)), **plain)
        kept = gr.State([], time_to_live=_LIFETIME_S)
        drawing = gr.on(
            [draw.click, prompt.submit],
            drawer.draw,
            inputs=[prompt, *order, kept],
            outputs=[status, sides, gallery, kept],
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
        )
        # No status text of its own: the drawing's last status may arrive later and would overwrite it.
        stop.click(None, cancels=[drawing], api_visibility="private")
        again.click(_last_seed, kept, order[1], api_visibility="private", queue=False)
    page.queue(max_size=settings.queue_size, default_concurrency_limit=1, api_open=False)
    return page


def _example_inputs(gr: Any, prompt: Any) -> None:
    """Add the examples, and the words of the embedded default's world, which are appended to the prompt."""
    for kind, prompts in EXAMPLES.items():
        gr.Examples([[one] for one in prompts], inputs=[prompt], label=kind, preload=False)
    with gr.Accordion("What this small model knows", open=False):
        for kind, words in known_words().items():
            chips = gr.Dataset(
                components=[prompt], samples=[[word] for word in words], label=kind, samples_per_page=1000
            )
            chips.click(_appended, [prompt, chips], prompt, api_visibility="private", queue=False)


def _appended(prompt: str, chosen: list[str]) -> str:
    return f"{prompt.rstrip()} {chosen[0]}".lstrip()


def _last_seed(kept: list[ui_html.Shown]) -> str:
    return str(kept[0].seed) if kept else ""


def _settings_inputs(gr: Any, settings: UiSettings) -> tuple[list[Any], Any]:
    """Add the settings; return them in the order of `Drawer.draw`, and the button that keeps the last seed."""

    def slider(
        label: str, info: str, low: float, high: float, value: float, *, step: float = 0.1, id: str = ""
    ) -> Any:
        place = {"min_width": 200, "elem_id": id or label.lower()}
        return gr.Slider(low, high, value, step=step, label=label, info=info, **place)

    with gr.Accordion("Settings", open=False):
        with gr.Row():
            negative = gr.Textbox(
                label="Negative prompt", info="What not to draw.", max_length=MAX_PROMPT, elem_id="negative"
            )
            seed = gr.Textbox(
                label="Seed",
                info="Empty: a new seed for every drawing.",
                max_length=19,
                min_width=160,
                elem_id="seed",
            )
            again = gr.Button("Use the last seed again", size="sm", min_width=120, elem_id="again")
        with gr.Row():
            number = slider(
                "Number", "Number of pictures, from consecutive seeds.", 1, settings.max_number, 1, step=1
            )
            steps = slider("Steps", "Denoising steps.", 1, settings.max_steps, 20, step=1)
            guidance = slider("Guidance scale", "How closely to follow the prompt.", 0, 20, 3, id="guidance")
            own = scale_of(settings.first_models)
            ends = "0: the base alone, 1: the LLM alone."
            scale = slider("Scale of the LLM", ends, 0, 1, own, step=0.05, id="scale")
        with gr.Row():
            factor = "Factor of what the LLM's {} blocks add; 1: as trained."
            thirds = [
                slider(f"{name} blocks", factor.format(name.lower()), 0, 2, 1, id=f"{name.lower()}-blocks")
                for name in ("Early", "Middle", "Late")
            ]
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
    return [negative, seed, number, steps, guidance, scale, *thirds, adapter, llm, pipeline], again


def _queue_words(queue_size: int) -> str:
    drawings = "drawing" if queue_size == 1 else "drawings"
    return (
        f"One drawing is made at a time; up to {queue_size} {drawings} may wait in line. If the line is full, the page "
        "says so: try again later."
    )
