"""Fill the store with many processes or machines at once, for `llmdiff prepare --workers N`."""

import copy
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

from tqdm.auto import tqdm

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.drawing.models import usable_device
from llmdiff.errors import ConfigError
from llmdiff.language.cache import CaptionStore
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.config import TrainConfig
from llmdiff.training.prepare import (
    COMPUTED_IN,
    LATENT_CHUNK,
    TrainingModels,
    caption_store,
    captions_to_read,
    fill_latents,
    latent_store,
    load_samples,
    missing_latents,
)
from llmdiff.workers.jobs import Job, Workers, run_jobs


def prepare_on_workers(config: TrainConfig, models: TrainingModels, workers: Workers) -> dict[str, int]:
    """Compute missing entries of the store and return their numbers; an interrupted call can be repeated.

    Every worker loads the LLM or the VAE once. It writes the results for each few hundred captions or pictures itself,
    so all workers need access to the store's folder.

    Raises:
        LLMDiffError: a model or the data cannot be loaded on a worker, a worker was killed, or Ray fails.
    """
    items: list[dict[str, Any]] = []
    keys: dict[str, str] = {}
    if (cache := caption_store(config, models.llm, models.context)) is not None:
        keys["captions"] = cache.key
        wanted = captions_to_read(config, models.samples)
        items += [{"captions": chunk} for chunk in cache.missing_chunks(wanted)]
    if config.data.store_latents:
        store = latent_store(config, models.pipe.vae, models.samples)
        keys["pictures"] = store.folder.name
        missing = missing_latents(store, models.samples)
        starts = range(0, len(missing), LATENT_CHUNK)
        items += [{"pictures": missing[start : start + LATENT_CHUNK]} for start in starts]
    make = partial(StoreFiller, config, keys, copy.deepcopy(models.context).cpu())
    jobs = [Job(name=f"part {number} of {len(items)}", args=item) for number, item in enumerate(items, 1)]
    made = {"captions": 0, "pictures": 0}
    with tqdm(total=len(items), desc=f"preparing on {workers.count} workers", mininterval=2) as bar:
        for done in run_jobs(make, jobs, workers, device=usable_device(config.device)):
            made = {name: count + done.checked().get(name, 0) for name, count in made.items()}
            bar.update()
    return made


class StoreFiller:
    """One worker's models; each is loaded when the first item needs it.

    `keys` are the expected names of the store's folders; they differ if a worker's models differ.
    """

    def __init__(self, config: TrainConfig, keys: Mapping[str, str], context: ContextEncoding) -> None:
        self._config, self._keys, self._context = config, keys, context
        self._device = usable_device(self._config.device)
        self._dtype = COMPUTED_IN[self._config.training.precision]

    def __call__(self, item: Mapping[str, Any]) -> dict[str, int]:
        """Process an item and return the number of new entries in the store."""
        if "captions" in item:
            return {"captions": self._cache.fill(item["captions"])}
        store, vae, samples = self._latents
        return {"pictures": fill_latents(store, vae, samples, item["pictures"])}

    @cached_property
    def _cache(self) -> CaptionStore[Any]:
        llm = DecoderLLM.from_pretrained(self._config.models.llm, device=self._device, dtype=self._dtype)
        cache = caption_store(self._config, llm, self._context.to(self._device))
        assert cache is not None  # items of captions exist only with a store
        self._check("captions", cache.key)
        return cache

    @cached_property
    def _latents(self) -> tuple[Any, Any, Any]:
        pipe = load_base_pipeline(self._config.models.base, dtype=self._dtype)
        vae = pipe.vae.to(self._device).requires_grad_(False).eval()
        samples = load_samples(self._config, pipe)
        store = latent_store(self._config, vae, samples)
        self._check("pictures", store.folder.name)
        return store, vae, samples

    def _check(self, what: str, key: str) -> None:
        if key != self._keys[what]:
            raise ConfigError(
                f"a worker's models or data give different {what} than this machine's (store {key}, expected "
                f"{self._keys[what]}): give all machines the same models, data and device"
            )
