"""Seeded damage to files: odd values in JSON, broken bytes, something else in the place."""

import json
import os
import random
import shutil
from pathlib import Path

# As they stand in the text: some are no values that Python could write.
PLAIN = r"""
    null true false "" "text" "../outside" "\u0000" "\ud800" "\u0663" -1 0 1 3.7 1e400 1099511627776
    NaN -Infinity [] [null] [1,[2,"x"]] {} {"a":{"b":null}}
"""
ODD = (*PLAIN.split(), "[" * 3000 + "]" * 3000, "9" * 5000, f'"{"x" * 20000}"')


def odd_json(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """A JSON text with one place changed, and what was done to it."""
    root = [json.loads(content)]
    parent, key, place = root, 0, ""
    while isinstance(parent[key], dict | list) and parent[key]:
        if parent is not root and dice.random() < 0.35:
            break
        parent = parent[key]
        names = list(parent if isinstance(parent, dict) else range(len(parent)))
        key = dice.choice(names)
        place += f"/{key}"
    mark, odd = "@odd value@", ""
    how = dice.random()
    if how < 0.12 and parent is not root:
        del parent[key]
        done = f"{place} taken out"
    elif how < 0.2 and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
        done = f"{place} renamed"
    elif how < 0.27:
        parent[key] = [parent[key]]
        done = f"{place} in a list"
    elif how < 0.34 and not isinstance(parent[key], str):
        parent[key] = json.dumps(parent[key])
        done = f"{place} as text"
    else:
        parent[key], odd = mark, dice.choice(ODD)
        done = f"{place} = {odd[:30]}"
    return json.dumps(root[0]).replace(f'"{mark}"', odd).encode(), done


def odd_bytes(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Other bytes than a file had, and what was done to them."""
    at = dice.randrange(len(content) + 1)
    kinds = {
        "cut": lambda: content[:at],
        "empty": lambda: b"",
        "a bit flipped": lambda: _flipped(content, dice),
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content,
        "not UTF-8": lambda: content[:at] + b"\xff\xfe\xc0" + content[at:],
        "a null byte": lambda: content[:at] + b"\x00" + content[at:],
        "UTF-16": lambda: content.decode(errors="replace").encode("utf-16"),
        "CRLF": lambda: content.replace(b"\n", b"\r\n"),
        "twice": lambda: content * 2,
        "white space": lambda: b" \n\t\n",
        "half missing": lambda: content[at:],
        "zeros": lambda: b"\x00" * len(content),
    }
    kind = dice.choice(list(kinds))
    return kinds[kind](), f"{kind} at {at} of {len(content)}"


def _flipped(content, dice):
    changed = bytearray(content)
    if changed:
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def odd_place(path: Path, dice: random.Random) -> str:
    """Puts something else in the place of a file or directory; says what."""
    kind = dice.choice(["nothing", "a directory", "a dangling link", "a link to itself", "a file"])
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "a directory":
        path.mkdir()
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a file":
        path.write_bytes(b"x")
    return f"{kind} in its place"


def damage(path: Path, dice: random.Random) -> str:
    """Damages a file or directory in one of these ways; says how."""
    how = dice.random()
    if how < 0.15 or not path.is_file():
        return f"{path.name}: {odd_place(path, dice)}"
    content = path.read_bytes()
    if how < 0.75 and path.suffix == ".json":
        content, done = odd_json(content, dice)
    elif how < 0.75 and path.suffix == ".jsonl":
        lines = content.splitlines()
        number = dice.randrange(len(lines))
        lines[number], done = odd_json(lines[number], dice)
        content = b"\n".join(lines) + b"\n"
    else:
        content, done = odd_bytes(content, dice)
    path.unlink()  # it may be shared by a hard link
    path.write_bytes(content)
    return f"{path.name}: {done}"


def linked_copy(source: Path, target: Path) -> None:
    """A copy whose files share their content with the source until they are replaced."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        os.link(source, target)
