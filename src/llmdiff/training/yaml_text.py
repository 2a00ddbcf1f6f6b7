"""YAML as users write it: text stays text, and what is none is one line."""

import re
from typing import Any

import yaml

from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which `no`, `off` and the like are text, as in YAML 1.2, and every key stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            ConstructorError: a key is there twice.
        """
        seen: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {short(name)} is there twice")
            seen.append(name)
        return dict(super().construct_mapping(node, deep=deep))


_TRUTH = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    letter: [one for one in rows if one[0] != _TRUTH]
    for letter, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TRUTH, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse_yaml(problem: str, text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        ConfigError: it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    # ValueError: a date that there is not, a number of 5,000 digits; TypeError: a key that is a list.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{problem} ({said[:300]}): repair it") from error
