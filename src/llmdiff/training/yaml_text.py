"""Parse YAML files of users: `no` and `off` stay text, and errors are one line."""

import re
from typing import Any

import yaml

from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader in which `no`, `off` and similar words are text, as in YAML 1.2, and duplicate keys are errors."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            ConstructorError: a key occurs twice.
        """
        seen: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {short(name)} occurs twice")
            seen.append(name)
        return dict(super().construct_mapping(node, deep=deep))


_TRUTH = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    letter: [one for one in rows if one[0] != _TRUTH]
    for letter, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TRUTH, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse_yaml(problem: str, text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    # ValueError: an invalid date, or a number of 5,000 digits; TypeError: a list as a key.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{problem} ({said[:300]}): correct it") from error
