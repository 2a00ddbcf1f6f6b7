"""Draw the golden pictures again after the shipped weights have changed, on a CPU."""

from pathlib import Path

from PIL import Image

from llmdiff.adapter.settings import Control
from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.drawing.models import Models, load

GOLDEN = Path(__file__).parent / "golden"
# Of `make demo`.
DEMO_PROMPT = "a spacecraft above a fortress on a blue background"
PROMPT, SEED = "a cat above a red apple", 7


def main() -> None:
    """Write demo.png, the base's row and the LLM's of four seeds each, and generate.png."""
    controller, pipe = load(Models(device="cpu"))
    settings = DrawingSettings(prompt=DEMO_PROMPT, seed=0, number=4)
    rows = []
    for control in (Control().base, Control()):
        with controller.attached(pipe, control):
            rows.append([draw(pipe, settings, seed) for seed in settings.seeds])
    side = rows[0][0].width
    sheet = Image.new("RGB", (4 * side, 2 * side))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * side, y * side))
    sheet.save(GOLDEN / "demo.png")
    with controller.attached(pipe):
        draw(pipe, DrawingSettings(prompt=PROMPT, seed=SEED), SEED).save(GOLDEN / "generate.png")


if __name__ == "__main__":
    main()
