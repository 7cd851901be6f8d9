"""What is said of a value that a configuration cannot have: where, what was expected, what was found, and the nearest valid name."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

LONG = 60  # characters of a value that are shown
LIST = "a list of values, as [a, b], or [] for none"
KINDS = {  # pydantic's types of errors; the rest keep its words
    "bool": "true or false",
    "dict": "{key: value}",
    "float": "a number",
    "int": "a whole number",
    "list": LIST,
    "path": "a path",
    "string": "text",
    "time_delta": "a duration, as 90s, 45m, 1h30m or 2d",
    "tuple": LIST,
}
BOUNDS = {"greater_than": "above", "greater_than_equal": "or more", "less_than": "below", "less_than_equal": "or less"}
_KIND = re.compile(r"constrained-\w+|function-\w+\[.*\]|literal\[.*\]|int|str")  # what pydantic calls one kind of a field of two


def one_line(error: "ValidationError", schema: "type[BaseModel]", prefix: str = "") -> str:
    """The first thing that is wrong with what was to be a `schema`, with the nearest valid name; `prefix` says of what."""
    first, *others = error.errors()
    path = [str(part) for part in first["loc"] if not _KIND.fullmatch(str(part))]
    where = prefix + ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{where}: no such key{_nearest_key(schema, path)}"
    wanted = [_wanted(first)]
    for other in others:  # what else a field of two kinds may be
        if other["loc"][:-1] == first["loc"][:-1] and len(other["loc"]) == len(first["loc"]) > len(path) and _wanted(other) not in wanted:
            wanted.append(_wanted(other))
    if first["type"] == "literal_error" and len(wanted) == 1:
        return f"{where}: no choice {shown(first['input'])}{nearest(str(first['input']), _choices(first))}"
    if first["type"] == "missing":
        return f"{where}: it must be given"
    either = ", or ".join([wanted[0], *(text.removeprefix("expected ") for text in wanted[1:])])
    return f"{where}: {either} (got {shown(first['input'])}{_hint(first)})"


def shown(value: Any) -> str:
    """As one would write it in YAML, but no more than a line has room for."""
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError):  # a date; a list that holds itself
        text = str(value)
    return text if len(text) <= LONG else f"{text[:LONG]}..."


def nearest(name: str, choices: Iterable[str]) -> str:
    """What else could have been meant, to be put behind the line that refuses `name`."""
    known = list(choices)
    lower = {choice.lower(): choice for choice in known}
    if near := difflib.get_close_matches(name.lower(), lower, n=1):
        return f"; did you mean {lower[near[0]]!r}?"
    return f"; choose from {', '.join(known)}" if known else ""


def _wanted(error: Any) -> str:
    """What was expected; a validator of our own says it in its own words."""
    kind, about = error["type"], error.get("ctx", {})
    if kind in BOUNDS:
        bound = next(iter(about.values()))
        number = f"{bound:g}" if isinstance(bound, float) else str(bound)
        if kind.endswith("equal"):
            return f"expected {number} {BOUNDS[kind]}"
        return "expected a duration above 0" if "timedelta" in number else f"expected a number {BOUNDS[kind]} {number}"
    match kind:
        case "literal_error":
            return f"expected {about['expected']}"
        case "finite_number":
            return "expected a finite number"
        case "too_short" | "string_too_short":
            return f"expected {about['min_length']} or more"
        case "too_long":
            return f"expected {about['max_length']} at most"
    if found := re.fullmatch(rf"({'|'.join(KINDS)})_(?:type|parsing|from_float|parsing_size)", kind):
        return f"expected {KINDS[found[1]]}"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[0].lower() + text[1:]


def _hint(error: Any) -> str:
    """What is easily mistaken in YAML."""
    value = error["input"]
    if error["type"] == "string_type" and isinstance(value, int | float):
        return f"; in quotes, '\"{value}\"', it is text"
    if error["type"] in ("float_parsing", "int_parsing") and isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        return f"; write {float(value.strip(' %')) / 100:g}"
    return ""


def _choices(error: Any) -> list[str]:
    return [choice.strip("' ") for choice in error["ctx"]["expected"].replace(" or ", ",").split(",")]


def _nearest_key(schema: "type[BaseModel]", path: list[str]) -> str:
    """The nearest key there, or the section in which there is one of this name."""
    *above, key = path
    there = _fields_at(schema, above)
    elsewhere = [name for name in schema.model_fields if key in _fields_at(schema, [name])]
    if len(above) == 1 and elsewhere and not difflib.get_close_matches(key, there, cutoff=0.8):
        return f"; did you mean '{elsewhere[0]}.{key}'?"
    return nearest(key, there)


def _fields_at(schema: "type[BaseModel]", path: Iterable[str]) -> Iterable[str]:
    kind: Any = schema
    for name in path:
        kind = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not hasattr(kind, "model_fields"):
            return ()
    return list(kind.model_fields)
