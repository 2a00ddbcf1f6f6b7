"""Load models of transformers and diffusers, and raise an error unless all weights come from their files.

Both libraries initialise missing weights at random and ignore weights with unknown names.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from llmdiff.errors import CorruptWeightsError, OutputError

# Counters and tables in older files that are computed from the configuration.
_NO_WEIGHT = re.compile(r"(^|\.)(num_batches_tracked|position_ids|inv_freq|masked_bias)$")
# diffusers reports wrong shapes only in the message of an exception.
_WRONG_SHAPE = re.compile(r"(\S+) expected shape (.+?), but got (.+?)\. If you")
_NAMED = 3


def load_whole(
    kind: Any,
    source: Any,
    *,
    what: str,
    unused: Collection[str] = (),
    head_runs: bool = True,
    **options: Any,
) -> Any:
    """Return `kind.from_pretrained(source, **options)` after checking that every weight was read from its files.

    `what` names the model in errors. `unused` are top-level parts that are never run and may be missing or unread;
    `head_runs=False` adds everything outside the base model, such as a language-model head.

    Raises:
        CorruptWeightsError: a weight is missing, unread, of another shape or on the meta device, or a file is
            damaged.
    """
    hide_loading_bars()
    if not _is_diffusers(kind):
        # transformers then lists mismatched weights in its report instead of raising an error without names.
        options["ignore_mismatched_sizes"] = True
    try:
        with damage_named(what):
            model, report = kind.from_pretrained(source, output_loading_info=True, **options)
    except ValueError as error:
        found = _WRONG_SHAPE.search(str(error))
        if found is None:
            raise
        name, expected, got = found.groups()
        check_faults({"of another shape": [f"{name}: {got} instead of {expected}"]}, what=what)
    check_report(model, report, what=what, unused=unused, head_runs=head_runs)
    return model


@contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Return a context that turns safetensors' errors into errors that name the model.

    Raises:
        CorruptWeightsError: a file is damaged.
        OutputError: the disk is full while converted weights are written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if "I/O error" in str(error):
            raise OutputError(
                f"{what}: weights cannot be written ({error}): free disk space, or set $LLMDIFF_HOME to a folder on "
                "another disk"
            ) from error
        raise CorruptWeightsError(
            f"{what} has a weight file that is truncated or damaged ({error}): download it again"
        ) from error


def hide_loading_bars() -> None:
    """Hide the libraries' progress bars for loading if their verbosity is "error", as the commands set it."""
    import diffusers
    import huggingface_hub.utils
    import transformers

    logs: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    if logs[0].get_verbosity() <= logging.WARNING:
        return
    downloads: Any = huggingface_hub.utils
    downloads_hidden = downloads.are_progress_bars_disabled()
    for log in logs:
        log.disable_progress_bar()
    # transformers also disables the bars of downloads, which may take an hour.
    if not downloads_hidden:
        downloads.enable_progress_bars()


def check_report(
    model: Any, report: Any, *, what: str, unused: Collection[str] = (), head_runs: bool = True
) -> None:
    """Raise a CorruptWeightsError if the loading report of a model has faults; see `load_whole`."""
    missing = set(report["missing_keys"])
    unread = set(report["unexpected_keys"])
    shapes = {
        name: f"{name}: {_shape(got)} instead of {_shape(it)}" for name, got, it in report["mismatched_keys"]
    }
    if not _is_diffusers(type(model)):
        parts = _parts_that_run(model, head_runs) - set(unused)
        missing, unread = ({key for key in keys if key.split(".")[0] in parts} for keys in (missing, unread))
        shapes = {name: text for name, text in shapes.items() if name.split(".")[0] in parts}
    weights = chain(model.named_parameters(), model.named_buffers())
    without_values = {name for name, weight in weights if weight.is_meta} - missing - set(shapes)
    check_faults(
        {
            "missing": missing,
            "unread, for which the model has no place": unread,
            "of another shape": shapes.values(),
            "without values": without_values,
        },
        what=what,
    )


def check_faults(faults: Mapping[str, Iterable[str]], *, what: str) -> None:
    """Raise a CorruptWeightsError if `faults`, which maps kinds of faults to names of weights, has any."""
    found = []
    for fault, names in faults.items():
        listed = sorted(name for name in names if not _NO_WEIGHT.search(name))
        if listed:
            more = ", ..." if len(listed) > _NAMED else ""
            found.append(f"{len(listed)} {fault} ({', '.join(listed[:_NAMED])}{more})")
    if found:
        raise CorruptWeightsError(
            f"{what} cannot be read completely, weights: {'; '.join(found)}. Use a complete copy, saved with the "
            "names and shapes of its class, unpacked and unscaled"
        )


def _parts_that_run(model: Any, head_runs: bool) -> set[str]:
    """Return the names of the top-level parts that are run."""
    if not head_runs and model.base_model is not model:
        return {model.base_model_prefix.split(".")[0]}
    own = chain(model.named_parameters(recurse=False), model.named_buffers(recurse=False))
    return {name for name, _ in chain(model.named_children(), own)}


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape) or "one number"


def _is_diffusers(kind: Any) -> bool:
    """Return whether this is a diffusers model class; these have no heads and no report of mismatched shapes."""
    return isinstance(kind, type) and any(base.__module__.startswith("diffusers.") for base in kind.__mro__)
