"""A page for the phone: networks in a browser, which classifies pictures and measures latency.

A static folder that any web server hands out. The engine is onnxruntime-web, from where it is
published or a copy in the folder; its files are loaded only if their checksums are those that the
page was written with.
"""

import base64
import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mobilenext.deploy.preprocessing import Preprocessing
from mobilenext.errors import InputError
from mobilenext.files import printable, read_regular, writable, write_whole
from mobilenext.plain import check_plain

ENGINE = "onnxruntime-web"
ENGINE_VERSION = "1.30.0"
"""The one that a page loads from `ENGINE_HOME`."""
ENGINE_HOME = f"https://cdn.jsdelivr.net/npm/{ENGINE}@{ENGINE_VERSION}/dist/"
MODULE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
INTEGRITY = {
    MODULE: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    WASM: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
"""Of the files of `ENGINE_VERSION`."""
HEADS = {MODULE: b"/*!", WASM: b"\0asm"}
"""How the engine's files begin."""

NETWORKS = "networks.json"
STYLE, SCRIPT, TEMPLATE = "page.css", "page.js", "page.html"
NAMES = ("index.html", SCRIPT, STYLE, NETWORKS, MODULE, WASM)
NETWORK = re.compile(r"network-[0-9a-f]{12}\.onnx")
"""Names of networks' files: a page changed beside a browser's old copies still fits them."""
VERSION = 1
MOST_BYTES = 1 << 30
"""Of a network or of a file of the engine."""

ROW = ("engine", "engine_version", "provider", "label", "image_size", "ms", "ratio", "resolved",
       "rounds", "repeats")  # fmt: skip
"""What a row of the results has beside the network's facts."""


@dataclass(frozen=True)
class PageNetwork:
    """A network of a page.

    Attributes:
        label: Its name on the page.
        file: An ONNX file as `formats.write` makes it: from `pixels`, uint8 (batch, 3, image_size,
            image_size), to `logits`.
        preprocessing: How its pixels are made.
        facts: Plain values by name, for instance model, width, identity, params, madds; none of
            `ROW`. They are shown, and stand in its row of the results.
    """

    label: str
    file: Path
    preprocessing: Preprocessing
    facts: Mapping[str, Any]


def page_names(folder: Path) -> list[str]:
    """Names of files that a page has, or has left in a folder: `check_output_folder`'s `own`.

    Args:
        folder: The page's; it need not be there.
    """
    return [*NAMES, *_networks_in(folder)]


def write_page(
    folder: Path, networks: Sequence[PageNetwork], onnxruntime_web: Path | None
) -> list[str]:
    """Write a page, each file as a whole, and remove what an earlier one had beside these.

    Args:
        folder: The page's; made if it is not there.
        networks: At least one, with labels that differ. The first is the baseline of ratios.
        onnxruntime_web: The unpacked npm package onnxruntime-web, or its dist folder, whose files
            the page gets: it then needs no network. None: it loads `ENGINE_VERSION` from
            `ENGINE_HOME`.

    Returns:
        The files' names.

    Raises:
        InputError: There is no network, two have a label, one can't be read, the engine is not
            there, or the folder can't be written to. Nothing was written but in the last case.
        ValueError: Facts are not plain, or have a name of `ROW`.
    """
    files: dict[str, bytes] = {}
    listed = []
    _check_labels([printable(one.label) for one in networks])
    for one in networks:
        content = _read_network(one)
        name = f"network-{_digest(content)}.onnx"
        files[name] = content
        listed.append(_listed(one, name))
    engine = {} if onnxruntime_web is None else _engine_in(onnxruntime_web)
    files |= engine
    files |= {name: _data(name) for name in (STYLE, SCRIPT)}
    urls = {name: _address(name, engine.get(name)) for name in (MODULE, WASM)}
    integrity = {name: _integrity(content) for name, content in engine.items()} or INTEGRITY
    values = {
        "version": VERSION,
        "engine": {
            "module": urls[MODULE], "wasm": urls[WASM], "wasm_integrity": integrity[WASM],
        },
        "networks": listed,
    }  # fmt: skip
    template = string.Template(_data(TEMPLATE).decode())
    files["index.html"] = template.substitute(
        engine_source="" if engine else ENGINE_HOME, module=urls[MODULE],
        integrity=integrity[MODULE], style=_address(STYLE, files[STYLE]),
        script=_address(SCRIPT, files[SCRIPT]),
    ).encode()  # fmt: skip
    files[NETWORKS] = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1).encode()
    with writable(f"output={folder}"):
        for name, content in files.items():
            write_whole(folder / name, content)
        for name in set(page_names(folder)) - set(files):
            (folder / name).unlink(missing_ok=True)
    return list(files)


def _networks_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.onnx") if NETWORK.fullmatch(path.name))


def _check_labels(labels: list[str]) -> None:
    if not labels:
        raise InputError("a page: expected at least one network, got none; name one")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise InputError(
            f"a page: expected labels that differ, got {twice[0]} {labels.count(twice[0])} times; "
            "name its networks apart"
        )


def _read_network(one: PageNetwork) -> bytes:
    try:
        return read_regular(one.file, MOST_BYTES)
    except OSError as error:
        raise InputError(
            f"{printable(one.file)}: expected the ONNX file of {printable(one.label)}, which "
            f"can't be read ({error.strerror}); export it with format=onnx"
        ) from error


def _listed(one: PageNetwork, name: str) -> dict[str, Any]:
    taken = sorted(set(one.facts) & set(ROW))
    if taken:
        raise ValueError(f"facts of {one.label}: {', '.join(taken)} are names of the page's own")
    check_plain(dict(one.facts), f"plain facts of {printable(one.label)}")
    return {
        "label": printable(one.label),
        "file": name,
        "preprocessing": asdict(one.preprocessing),
        "facts": dict(one.facts),
    }


def _engine_in(folder: Path) -> dict[str, bytes]:
    """The engine's files out of a copy of its package."""
    advice = (
        f"expected the npm package {ENGINE}, unpacked, or its dist folder, with {MODULE} and "
        f"{WASM}: `npm pack {ENGINE}@{ENGINE_VERSION}`, `tar xf` what comes, and give the path of "
        "the folder package"
    )
    place = folder / "dist" if (folder / "dist").is_dir() else folder
    found = {}
    for name, head in HEADS.items():
        try:
            found[name] = read_regular(place / name, MOST_BYTES)
        except OSError as error:
            what = f"no {name} in it" if place.is_dir() else "no folder"
            raise InputError(f"{printable(folder)}: {advice}; got {what}") from error
        if not found[name].startswith(head):
            raise InputError(f"{printable(folder)}: {advice}; got another kind of file as {name}")
    return found


def _address(name: str, content: bytes | None) -> str:
    """Where the page finds a file; a browser takes no older copy of one in the folder."""
    return ENGINE_HOME + name if content is None else f"./{name}?{_digest(content)}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _integrity(content: bytes) -> str:
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}"


def _data(name: str) -> bytes:
    return resources.files(__package__ or "mobilenext.deploy").joinpath(name).read_bytes()


RESULTS = "the JSON that a page's button copies"
TIMES, RATIOS = ("min", "q1", "median", "q3", "p90"), ("q1", "median", "q3")


def read_results(text: str) -> dict[str, Any]:
    """Read what a page's button has copied: latencies of its networks on a device.

    Args:
        text: JSON.

    Returns:
        `kind`, `version`, `device`, `user_agent`, `threads`, `batch`, `rounds`, `baseline` (a
        label), `clock_resolution_ms`, and `rows`: one of each network, with its facts and `ROW`.
        `ms` has `TIMES` of one image, `ratio` has `RATIOS` of the time over the baseline's in the
        same round (None for the baseline), and `resolved` says whether its quartiles exclude 1.

    Raises:
        InputError: The text is something else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected {RESULTS}, got something else ({error}); copy it again, whole"
        ) from error
    check_plain(value, RESULTS)
    _check(isinstance(value, dict), "an object", value)
    _check(value.get("kind") == "latency", "kind latency", value.get("kind"))
    _check(value.get("version") == VERSION, f"version {VERSION}", value.get("version"))
    for name in ("device", "user_agent", "baseline"):
        _check_text(value, name, "")
    for name in ("threads", "batch", "rounds"):
        _check_count(value, name, "")
    step = value.get("clock_resolution_ms")
    _check(_positive(step), "clock_resolution_ms above 0", step)
    rows = value.get("rows")
    _check(isinstance(rows, list) and len(rows) > 0, "rows, at least one", rows)
    for number, row in enumerate(rows, 1):
        _check_row(row, f" in row {number}", value)
    labels = [row["label"] for row in rows]
    _check(len(set(labels)) == len(labels), "rows with labels that differ", labels)
    _check(value["baseline"] in labels, "a row of the baseline", value["baseline"])
    return value


def _check_row(row: Any, where: str, value: dict[str, Any]) -> None:
    _check(isinstance(row, dict), f"an object{where}", row)
    for name in ("engine", "engine_version", "provider", "label"):
        _check_text(row, name, where)
    for name in ("image_size", "rounds", "repeats"):
        _check_count(row, name, where)
    _check_rising(row.get("ms"), TIMES, f"ms{where}")
    ratio, resolved = row.get("ratio"), row.get("resolved")
    if row["label"] == value["baseline"]:
        _check(ratio is None, f"ratio null{where}, the baseline", ratio)
        _check(resolved is None, f"resolved null{where}, the baseline", resolved)
        return
    _check_rising(ratio, RATIOS, f"ratio{where}")
    excludes = ratio["q1"] > 1 or ratio["q3"] < 1
    _check(resolved is excludes, f"resolved {json.dumps(excludes)}{where}", resolved)


def _check(holds: bool, expected: str, got: Any) -> None:
    if not holds:
        shown = printable(json.dumps(got, ensure_ascii=False, default=str))
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InputError(f"expected {RESULTS}, with {expected}; got {shown}; copy it again, whole")


def _check_text(values: dict[str, Any], name: str, where: str) -> None:
    text = values.get(name)
    _check(isinstance(text, str) and text.strip() != "", f"a text {name}{where}", text)


def _check_count(values: dict[str, Any], name: str, where: str) -> None:
    count = values.get(name)
    whole = isinstance(count, int) and _positive(count)
    _check(whole, f"a whole number {name}{where}", count)


def _check_rising(values: Any, names: tuple[str, ...], where: str) -> None:
    expected = f"{where} with {' <= '.join(names)}, above 0"
    _check(isinstance(values, dict) and set(values) == set(names), expected, values)
    ordered = [values[name] for name in names]
    rising = all(map(_positive, ordered)) and ordered == sorted(ordered)
    _check(rising, expected, values)


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < 1e12
