"""Keys, tokens and passwords have no place in what is said, logged or kept: they belong in the environment, or in ~/.netrc."""

import functools
import os
import re

HIDDEN = "***"
SHORT = 8  # characters: a value of fewer may be any word
_NAMED = r"(?:token|secret|passw(?:or)?d|api[-_]?key|access[-_]?key|signature|credential)[\w-]*"
_VARIABLE = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASS|PASSW(?:OR)?D|CREDENTIALS?|SIGNATURE)(?:_|$)", re.IGNORECASE)
_PATTERNS = [
    re.compile(r"(:/+[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)"),  # https://me:password@host
    re.compile(r"(https?:/+)[^\s/:@'\"]+(?=@)"),  # https://token@host; but ssh://git@host is only an address
    re.compile(r"([?&;](?:key|sig)=)[^\s&#'\"]+", re.IGNORECASE),  # of a link that is signed
    re.compile(rf"({_NAMED}(?:=|['\"]\s*:\s*)['\"]?)[^\s&#,;}}'\"]+", re.IGNORECASE),  # --token=..., {{"password": ...}}
    re.compile(r"(authorization['\"]?\s*[=:]\s*['\"]?(?:\w+ )?)[^\s'\"]+", re.IGNORECASE),
]


def hide(text: str) -> str:
    """`text` without what is a credential by its looks, or by being the value of a variable of the environment that is named so."""
    for value in _values():
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


@functools.cache
def _values() -> tuple[str, ...]:
    """Of the environment as it was first seen, the longest first."""
    named = {value for name, value in os.environ.items() if _VARIABLE.search(name)}
    in_urls = {found for value in os.environ.values() for found in re.findall(r"://[^\s/:@]*:([^\s/@]+)@", value)}  # of a proxy, say
    return tuple(sorted((value for value in named | in_urls if len(value) >= SHORT), key=len, reverse=True))
