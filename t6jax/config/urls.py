"""URLs without what opens them: user names, passwords, tokens and signatures stay out of files."""

import re
from collections.abc import Mapping
from typing import Any

# In these the part before @ is a container of Azure's, no secret.
_USER = re.compile(r"(?<!abfs)(?<!abfss)(?<!wasb)(?<!wasbs)://[^/@\s'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")


def without_secrets[T](value: T) -> T:
    """A text without the user info and query of its URLs; of a dict, its texts, at any depth."""
    found: Any = value
    if isinstance(found, str):
        found = _QUERY.sub(r"\1", _USER.sub("://", found))
    elif isinstance(found, Mapping):
        found = {key: without_secrets(inner) for key, inner in found.items()}
    return found
