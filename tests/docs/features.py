"""What diffusers' own features do on an attached pipeline of each family; `test_features.py` holds it against them."""

from collections.abc import Mapping

_FAMILIES: tuple[str, ...] = ()
OUTCOMES: Mapping[str, Mapping[str, str]] = {}
