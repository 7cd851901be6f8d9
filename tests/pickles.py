"""Finds pickles in bytes: whole files, members of archives within archives, and ones that lie among other bytes."""

import io
import pickletools
import re
import zipfile

BEGINS = re.compile(rb"\x80[\x02-\x05]")  # PROTO, of every protocol that has it
NAMES = re.compile(r"[A-Za-z_][\w.]*( [A-Za-z_][\w.]*)?")  # a module and what is looked up in it


def pickles(content: bytes) -> list[str]:
    """Where there are some."""
    found = ["the whole"] if _is_one(content) else []
    found += [f"at byte {match.start()}" for match in BEGINS.finditer(content) if _looks_up(content[match.start() :])]
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found += [f"{name}: {where}" for name in archive.namelist() for where in pickles(archive.read(name))]
    return found


def _is_one(content: bytes) -> bool:
    """From its first byte to its last, of any protocol."""
    try:
        operations = list(pickletools.genops(content))
    except Exception:  # whatever the bytes are
        return False
    return len(operations) > 1 and (operations[-1][2] or 0) + 1 >= len(content.rstrip(b"\n"))


def _looks_up(content: bytes) -> bool:
    """Whether a pickle begins here that would import something; what does not is too like other bytes."""
    text, imports = False, False
    try:
        for operation, argument, _ in pickletools.genops(content):
            text = text or (isinstance(argument, str) and NAMES.fullmatch(argument) is not None)
            imports = imports or operation.name in ("GLOBAL", "STACK_GLOBAL", "INST")
    except Exception:
        return False
    return text and imports
