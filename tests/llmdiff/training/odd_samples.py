"""What tests of strangers' training data share."""

import io
import json
import os

import numpy as np
from PIL import Image

from llmdiff.training.data import check_samples
from llmdiff.training.shapes import Shapes

SHAPES = Shapes(resolution_px=32, multiple_px=8, min_side_px=16)
SURROGATE = "has half a character (a lone surrogate)"


def png(size=(32, 32), colour=(200, 30, 30), **options):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, options.pop("kind", "PNG"), **options)
    return file.getvalue()


def checked(source, tmp_path):
    """The captions of the good samples, and the reasons of the others by their keys."""
    samples = check_samples(source, SHAPES, tmp_path / "checked", max_bad_share=0.9)
    [listed] = (tmp_path / "checked").glob("*/quarantine.jsonl")
    bad = [json.loads(line) for line in listed.read_text().split("\n")[:-1]]
    texts = [[text for text, _ in samples.texts(index)] for index in range(len(samples))]
    for index in range(len(samples)):
        samples.load(index, np.random.default_rng(0))
    return texts, {line["key"]: line["reason"] for line in bad}


def paint(path, colour, *, keep_time=False):
    """Another picture of the same size under the same name."""
    before = path.stat()
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, colour).save(path)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path
