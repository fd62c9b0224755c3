"""The page for the phone: what is written, what is read back, and what a browser makes of it."""

import functools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import PIL.Image
import pytest

from mobilenext.data import digits
from mobilenext.deploy import classify
from mobilenext.deploy.formats import FORMATS, load, write
from mobilenext.deploy.page import (
    ENGINE_HOME,
    ENGINE_VERSION,
    HEADS,
    MODULE,
    NAMES,
    ROW,
    WASM,
    PageNetwork,
    page_names,
    read_results,
    write_page,
)
from mobilenext.deploy.preprocessing import Preprocessing
from mobilenext.errors import InputError
from mobilenext.files import check_output_folder
from mobilenext.models import MobileNeXt
from tests.models.nontrivial import with_weights

HOW = Preprocessing(
    32, 37, "bilinear", (0.3, 0.4, 0.5), (0.2, 0.3, 0.4), tuple("abcdefghij")
)  # fmt: skip
FACTS = {"model": "MobileNeXt", "width": 0.35, "identity": 0.5, "params": 12345, "madds": None}


@pytest.fixture
def networks(tmp_path: Path) -> list[PageNetwork]:
    """Two whose files are no networks: the page does not look inside."""
    made = []
    for label in ("one", "</script><b>other"):
        path = tmp_path / str(len(made)) / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(f"network {label}".encode())
        made.append(PageNetwork(label, path, HOW, FACTS))
    return made


@pytest.fixture
def fake_engine(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    (package / "dist").mkdir(parents=True)
    for name, head in HEADS.items():
        (package / "dist" / name).write_bytes(head + name.encode())
    (package / "dist" / "ort.js").write_text("much that a page does not need")
    return package


def found_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_page_is_whole(networks: list[PageNetwork], tmp_path: Path, fake_engine: Path) -> None:
    page = tmp_path / "page"
    names = write_page(page, networks, fake_engine)
    assert found_in(page) == set(names) == set(page_names(page))
    check_output_folder("output", page, page_names(page))
    listed = json.loads((page / "networks.json").read_text())
    assert [one["label"] for one in listed["networks"]] == ["one", "</script><b>other"]
    for one, network in zip(listed["networks"], networks, strict=True):
        assert (page / one["file"]).read_bytes() == network.file.read_bytes()
        assert one["facts"] == FACTS
        assert one["preprocessing"]["classes"] == list(HOW.classes)
    text = (page / "index.html").read_text()
    assert "$" not in text
    assert "http" not in text.replace("http.server", "").replace("http://localhost", "").replace(
        "http-equiv", ""
    )
    assert (page / MODULE).read_bytes() == (fake_engine / "dist" / MODULE).read_bytes()
    assert write_page(tmp_path / "again", networks, fake_engine / "dist") == names


def test_a_page_without_a_copy_loads_one_version(
    networks: list[PageNetwork], tmp_path: Path
) -> None:
    page = tmp_path / "page"
    write_page(page, networks, None)
    assert found_in(page).isdisjoint({MODULE, WASM})
    addresses = set(re.findall(r"https://[^\s\"';]+", (page / "index.html").read_text()))
    assert addresses == {ENGINE_HOME, ENGINE_HOME + MODULE}
    assert f"@{ENGINE_VERSION}/" in ENGINE_HOME
    engine = json.loads((page / "networks.json").read_text())["engine"]
    assert engine["wasm"] == ENGINE_HOME + WASM


def test_another_page_leaves_nothing_of_the_one_before(
    networks: list[PageNetwork], tmp_path: Path, fake_engine: Path
) -> None:
    page = tmp_path / "page"
    before = write_page(page, networks, fake_engine)
    after = write_page(page, networks[1:], None)
    assert found_in(page) == set(after) < set(before)
    (page / "network-mine.onnx").touch()
    with pytest.raises(InputError, match=r"got network-mine\.onnx"):
        check_output_folder("output", page, page_names(page))
    write_page(page, networks, None)
    assert (page / "network-mine.onnx").exists()
    assert set(page_names(tmp_path / "none")) == set(NAMES)


def test_a_page_of_nothing_is_refused(networks: list[PageNetwork], tmp_path: Path) -> None:
    page = tmp_path / "page"
    with pytest.raises(InputError, match="at least one network"):
        write_page(page, [], None)
    with pytest.raises(InputError, match="labels that differ, got one 2 times"):
        write_page(page, [networks[0], replace(networks[1], label="one")], None)
    with pytest.raises(InputError, match=r"can't be read .*format=onnx"):
        write_page(page, [networks[0], replace(networks[1], file=tmp_path / "no.onnx")], None)
    with pytest.raises(InputError, match="expected a regular file, got a folder"):
        write_page(page, [replace(networks[0], file=tmp_path)], None)
    for name in ROW:
        with pytest.raises(ValueError, match=f"facts of one: {name} are names of the page's own"):
            write_page(page, [replace(networks[0], facts={name: 1})], None)
    for value in (object(), float("nan"), {1: 2}):
        with pytest.raises(ValueError, match=r"plain|JSON"):
            write_page(page, [replace(networks[0], facts={"params": value})], None)
    assert not page.exists()


def test_another_folder_as_the_engine(
    networks: list[PageNetwork], tmp_path: Path, fake_engine: Path
) -> None:
    page, advice = tmp_path / "page", "npm pack onnxruntime-web@"
    with pytest.raises(InputError, match=rf"none: expected the npm package.*{advice}.*no folder"):
        write_page(page, networks, tmp_path / "none")
    with pytest.raises(InputError, match=rf"{advice}.*got no ort\.wasm\.bundle\.min\.mjs in it"):
        write_page(page, networks, tmp_path)
    (fake_engine / "dist" / WASM).write_text("<!DOCTYPE html>")
    with pytest.raises(InputError, match=rf"{advice}.*got another kind of file as {WASM}"):
        write_page(page, networks, fake_engine)
    assert not page.exists()


def test_a_page_that_can_not_be_written(networks: list[PageNetwork], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output=.*: can't write there"):
        write_page(tmp_path / "file" / "page", networks, None)


def results() -> dict[str, Any]:
    row = {
        "engine": "onnxruntime-web", "engine_version": "1.30.0", "provider": "wasm", "label": "one",
        **FACTS, "image_size": 32, "ms": {"min": 1, "q1": 1.5, "median": 2, "q3": 2.5, "p90": 3.0},
        "ratio": None, "resolved": None, "rounds": 30, "repeats": 2,
    }  # fmt: skip
    ratio = {"q1": 1.1, "median": 1.2, "q3": 1.3}
    return {
        "kind": "latency", "version": 1, "device": "a phone", "user_agent": "Mozilla/5.0",
        "threads": 1, "batch": 1, "rounds": 30, "baseline": "one", "clock_resolution_ms": 0.1,
        "rows": [row, {**row, "label": "other", "ratio": ratio, "resolved": True}],
    }  # fmt: skip


def test_results_come_back_as_they_are() -> None:
    assert read_results(json.dumps(results())) == results()
    for quartiles, resolved in (((0.8, 1.1), False), ((0.8, 1.0), False), ((0.8, 0.9), True)):
        changed = results()
        changed["rows"][1]["ratio"] = {"q1": quartiles[0], "median": 0.85, "q3": quartiles[1]}
        changed["rows"][1]["resolved"] = resolved
        assert read_results(json.dumps(changed)) == changed


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.pop(name)


def in_row(number: int, **changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["rows"][number].update(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(kind="train"), 'with kind latency; got "train"'),
        (lambda values: values.update(version=2), "with version 1; got 2"),
        (without("device"), "with a text device; got null"),
        (without("threads"), "with a whole number threads; got null"),
        (lambda values: values.update(threads=True), "with a whole number threads; got true"),
        (lambda values: values.update(rounds=0.5), r"with a whole number rounds; got 0\.5"),
        (lambda values: values.update(rounds=10**400), "with a whole number rounds; got 1000"),
        (lambda values: values.update(clock_resolution_ms=0), "clock_resolution_ms above 0; got 0"),
        (lambda values: values.update(rows=[]), r"rows, at least one; got \[\]"),
        (lambda values: values.update(rows=[None]), "an object in row 1; got null"),
        (lambda values: values.update(baseline="none"), "ratio with q1 <= |ratio in row 1 with"),
        (in_row(1, label="one", ratio=None, resolved=None), "rows with labels that differ"),
        (in_row(1, label=""), 'a text label in row 2; got ""'),
        (in_row(0, image_size="32"), 'a whole number image_size in row 1; got "32"'),
        (in_row(0, ms={"min": 1}), "ms in row 1 with min <= q1 <= median <= q3 <= p90"),
        (in_row(0, ms=None), "ms in row 1 with min"),
        (in_row(1, ratio={"q1": 2, "median": 1, "q3": 3}), "ratio in row 2 with q1 <= median"),
        (in_row(1, ratio={"q1": "1", "median": 1, "q3": 3}), "ratio in row 2 with q1 <= median"),
        (in_row(1, ratio={"q1": float("nan"), "median": 1, "q3": 3}), "ratio in row 2 with q1"),
        (in_row(1, resolved=False), "resolved true in row 2; got false"),
        (in_row(0, resolved=True), "resolved null in row 1, the baseline; got true"),
    ],
)
def test_other_results_are_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    values = results()
    change(values)
    with pytest.raises(InputError, match=f"the JSON that a page's button copies.*({message})"):
        read_results(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", json.dumps(results())[:-9], "[" * 100_000, "[]", "null"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"the JSON that a page's button copies.*copy it again"):
        read_results(text)


# ---- In a browser --------------------------------------------------------------------------------

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking",
           "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip)")
    path = os.environ.get("MOBILENEXT_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium: install it, or set MOBILENEXT_CHROMIUM to its program")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*OPTIONS])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def engine() -> Path:
    if "MOBILENEXT_ORT_WEB" not in os.environ:
        pytest.skip(
            "no onnxruntime-web: `npm pack onnxruntime-web`, unpack it, and set MOBILENEXT_ORT_WEB "
            "to its folder"
        )
    return Path(os.environ["MOBILENEXT_ORT_WEB"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[PageNetwork]:
    """Two networks, of which one takes bicubic pixels; a name that HTML would take as its own."""
    for package in FORMATS["onnx"].packages:
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exported")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    made = []
    for label, identity, interpolation in (("plain", 1.0, "bilinear"), ("<i>half", 0.5, "bicubic")):
        network = with_weights(
            MobileNeXt(0.35, identity, num_classes=10, depth_mult=0.5, strides=(1, 1, 2, 2, 2))
        )
        how = replace(HOW, interpolation=interpolation)
        path = folder / f"{len(made)}.onnx"
        write(FORMATS["onnx"], network.eval(), how, pixels, path)
        made.append(PageNetwork(label, path, how, {**FACTS, "identity": identity}))
    return made


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is served."""
    folder = tmp_path / "page"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab that keeps what it has said and asked for."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.set_default_timeout(120_000)  # the machine may be busy
    page.said, page.asked_for = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked_for.append(request.url))
    yield page
    page.close()


SHOWN = """
() => ({
  top: [...document.querySelectorAll('#top li')].map(one => [
    one.querySelector('span span').textContent, Number(one.dataset.probability),
  ]),
  size: document.querySelector('#pixels').width,
  bytes: [...document.querySelector('#pixels').getContext('2d').getImageData(
    0, 0, document.querySelector('#pixels').width, document.querySelector('#pixels').height,
  ).data],
})
"""


def answered(page: Any, what: str) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """The pixels that the network saw, (image_size, image_size, 3), and its answers."""
    page.locator("#told", has_text=what).wait_for()
    shown = page.evaluate(SHOWN)
    pixels = np.array(shown["bytes"], np.uint8).reshape(shown["size"], shown["size"], 4)
    return pixels[..., :3], [tuple(one) for one in shown["top"]]


def expected_of(network: PageNetwork, path: Path) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """The same by Python: classify.py's pixels, ONNX Runtime's answers."""
    how = json.loads(network.preprocessing.text())
    pixels = classify.pixels(path, how)
    logits = load(network.file, 1)(pixels)[0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    top = [(how["classes"][place], float(shares[place])) for place in np.argsort(-shares)[:5]]
    return pixels[0].transpose(1, 2, 0), top


def pictures(folder: Path) -> list[Path]:
    """Scanned digits, enlarged, cut and tinted, so that each side has its own ratio; and small."""
    paths = []
    random = np.random.default_rng(0)
    data = digits(131).val
    boxes = [(131, 97), (37, 41), (131, 131), (21, 30), (131, 37), (90, 89)]
    if int(PIL.__version__.split(".")[0]) >= 13:  # older ones round tall pictures otherwise
        boxes += [(60, 131), (37, 131), (29, 131)]
    for place, (width, height) in enumerate(boxes):
        image = np.asarray(data[place][0]).astype(float) * random.uniform(0.4, 1, 3)
        noisy = np.clip(image + random.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{place}.png")
        PIL.Image.fromarray(noisy[:height, :width]).save(paths[-1])
    return paths


@pytest.mark.slow
def test_a_browser_gives_pythons_answers(
    engine: Path, exported: list[PageNetwork], served: tuple[Path, str], page: Any, tmp_path: Path
) -> None:
    folder, address = served
    write_page(folder, exported, engine)
    page.goto(address)
    for path in pictures(tmp_path):
        for place, network in enumerate(exported):
            page.select_option("#network", index=place)
            page.set_input_files("#choose", path)
            pixels, top = answered(page, f"{network.label}: {path.name}, ")
            wanted, expected = expected_of(network, path)
            assert np.array_equal(pixels, wanted), f"{path.name}, {network.preprocessing}"
            assert [name for name, _ in top] == [name for name, _ in expected]
            np.testing.assert_allclose(
                [share for _, share in top], [share for _, share in expected], rtol=1e-4
            )
    assert all(url.startswith(address) for url in page.asked_for), page.asked_for
    assert page.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_photographs_are_turned_only_if_asked_for(
    engine: Path, exported: list[PageNetwork], served: tuple[Path, str], page: Any, tmp_path: Path
) -> None:
    folder, address = served
    write_page(folder, exported, engine)
    page.goto(address)
    (picture, *_) = pictures(tmp_path)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    turned = tmp_path / "turned.png"
    for suffix, most in ((".jpg", 3), (".png", 0)):
        photo = tmp_path / f"photo{suffix}"
        with PIL.Image.open(picture) as image:
            image.save(photo, exif=exif, quality=95)
        page.set_input_files("#photograph", photo)
        pixels, _ = answered(page, f"plain: {photo.name}, 131 × 97 ")
        wanted, _ = expected_of(exported[0], photo)
        assert np.abs(pixels.astype(int) - wanted).max() <= most
        page.check("#upright")
        pixels, _ = answered(page, f"plain: {photo.name}, 97 × 131 ")
        with PIL.Image.open(photo) as image:
            image.transpose(PIL.Image.Transpose.ROTATE_270).save(turned)
        wanted, _ = expected_of(exported[0], turned)
        assert np.abs(pixels.astype(int) - wanted).max() <= most
        page.uncheck("#upright")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.set_input_files("#choose", broken)
    page.locator("#told", has_text="expected a picture that this browser can show").wait_for()
    assert page.said == []


@pytest.mark.slow
def test_a_browser_measures(
    engine: Path, exported: list[PageNetwork], served: tuple[Path, str], page: Any
) -> None:
    folder, address = served
    write_page(folder, exported, engine)
    page.goto(address)
    page.fill("#device", "a <b>test</b>")
    page.fill("#rounds", "7")
    page.click("#measure")
    page.wait_for_selector("#results:not([hidden])", timeout=120_000)
    assert page.locator("#rows tr").count() == 2
    assert page.locator("#rows th").all_text_contents() == ["plain", "<i>half"]
    page.click("#copy")
    page.locator("#copied", has_text="Copied.").wait_for()
    found = read_results(page.input_value("#json"))
    assert found["device"] == "a <b>test</b>"
    assert found["baseline"] == "plain"
    assert found["rounds"] == 7
    for row, network in zip(found["rows"], exported, strict=True):
        assert {name: row[name] for name in network.facts} == network.facts
        assert set(row) == {*ROW, *network.facts}
        assert row["engine_version"] in (engine / "dist" / MODULE).read_text()[:200]
        assert row["ms"]["median"] * row["repeats"] >= 10 * found["clock_resolution_ms"]
    assert all(url.startswith(address) for url in page.asked_for), page.asked_for
    assert page.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.fill("#rounds", "1000")
    page.click("#measure")
    page.click("#stop")
    page.wait_for_selector("#results:not([hidden])", timeout=120_000)
    assert 5 <= read_results(page.input_value("#json"))["rounds"] < 1000


@pytest.mark.slow
def test_without_a_copy_the_published_engine_has_to_be_the_one(
    engine: Path, exported: list[PageNetwork], served: tuple[Path, str], page: Any, tmp_path: Path
) -> None:
    """The browser is answered by us, as the publisher would."""
    if f"v{ENGINE_VERSION}\n" not in (engine / "dist" / MODULE).read_text()[:200]:
        pytest.skip(f"MOBILENEXT_ORT_WEB is not onnxruntime-web {ENGINE_VERSION}")
    folder, address = served
    write_page(folder, exported, None)
    (picture, *_) = pictures(tmp_path)
    more = {"wasm": b""}

    def publish(route: Any) -> None:
        name = route.request.url.removeprefix(ENGINE_HOME)
        kind = "application/wasm" if name == WASM else "text/javascript"
        headers = {"access-control-allow-origin": "*", "content-type": kind}
        end = more["wasm"] if name == WASM else b""
        route.fulfill(body=(engine / "dist" / name).read_bytes() + end, headers=headers)

    page.context.route(f"{ENGINE_HOME}**", publish)
    page.goto(address)
    page.set_input_files("#choose", picture)
    _, top = answered(page, f"plain: {picture.name}, ")
    assert [name for name, _ in top] == [name for name, _ in expected_of(exported[0], picture)[1]]
    asked = {url for url in page.asked_for if not url.startswith(address)}
    assert asked == {ENGINE_HOME + MODULE, ENGINE_HOME + WASM}
    assert page.said == []
    more["wasm"] = b"another"
    page.goto(address)
    page.set_input_files("#choose", picture)
    page.locator("#told", has_text="The engine can't be loaded from https:").wait_for()


@pytest.mark.slow
def test_opened_as_a_file_it_says_how_to_serve_it(
    networks: list[PageNetwork], tmp_path: Path, page: Any
) -> None:
    folder = tmp_path / "page"
    write_page(folder, networks, None)
    page.context.route("https://**", lambda route: route.abort())
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#serve", state="visible")
    assert "python -m http.server" in page.inner_text("#serve")
    assert page.is_hidden("#parts")
