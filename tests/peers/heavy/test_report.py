"""The page of `segpack report` in a real browser: no error in its script, nothing cut off, pictures to look at.

Needs chromium (Debian: apt-get install chromium). The pictures are left in SEGPACK_PICTURES, if that is set: look at
them.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from conftest import ROOT, segpack

WIDTHS = [360, 1280, 1920]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    pack, page = folder / "pack", folder / "page.html"
    segpack("pack", ROOT / "extractor/demo/tiny-full", "-o", pack, "--codec", "bf16-rans")
    (folder / "verify.json").write_bytes(segpack("verify", pack, "--values", "--json"))
    experts = folder / "experts.json"
    segpack("run", pack, "--prompt", "Hello", "--max-new-tokens", "8", f"--experts-report={experts}")
    segpack("report", pack, "-o", page, "--verification", folder / "verify.json", "--experts", experts)
    return page


def chromium(*arguments):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "chromium is missing: apt-get install chromium"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               "--virtual-time-budget=4000"]
    return subprocess.run([program, *options, *map(str, arguments)], capture_output=True, text=True, check=True)


def test_every_section_is_drawn_without_an_error(page):
    done = chromium("--dump-dom", page.as_uri())
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    sections = re.findall(r'<section id="(\w+)"', done.stdout)
    assert sections == ["identity", "audit", "sizes", "experts", "values", "forecast", "tensors"]
    drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    for mistake in ["[object", '"NaN', ">NaN<", "undefined"]:
        assert mistake not in drawn


def test_every_picture_has_a_name(page):
    dom = chromium("--dump-dom", page.as_uri()).stdout
    pictures = re.findall(r"<svg[^>]*>", dom)
    assert pictures and all("aria-label=" in picture for picture in pictures)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_fits_its_window(page, width):
    # a window of the browser is never narrower than 500 pixels, a frame is
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(f"""<iframe id=f src="{page.name}" style="width:{width}px;height:4000px;border:0"></iframe>
<script>f.onload = () => {{ const d = f.contentDocument.documentElement;
document.title = JSON.stringify([d.scrollWidth, d.clientWidth]); }}</script>""")
    dom = chromium("--allow-file-access-from-files", "--dump-dom", frame.as_uri()).stdout
    seen, wanted = json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))
    assert seen <= wanted, f"{seen} pixels wide in a window of {wanted}"
    pictures = os.environ.get("SEGPACK_PICTURES")
    if pictures:
        target = pathlib.Path(pictures) / f"report-{width}.png"
        chromium(f"--window-size={max(width, 500)},4000", f"--screenshot={target}", page.as_uri())


KEYS = """<iframe id=f src="PAGE" style="width:1280px;height:4000px;border:0"></iframe>
<script>
f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow, seen = [];
  const key = (to, name) => to.dispatchEvent(new w.KeyboardEvent("keydown", { key: name, bubbles: true }));
  const sizes = d.getElementById("sizes"), where = () => seen.push(sizes.querySelector("strong").textContent);
  const cell = sizes.querySelector('[tabindex="0"][role="button"]');
  cell.focus(); key(cell, "Enter"); where();
  key(d.activeElement, "ArrowRight"); key(d.activeElement, "Enter"); where();
  key(d.activeElement, "Escape"); where();
  const heat = d.querySelector('#experts [role="application"]');
  key(heat, "ArrowRight"); key(heat, "ArrowDown"); seen.push(d.querySelector("#experts .reading").textContent);
  const search = d.querySelector('input[type="search"]');
  search.value = "experts.3.down"; search.dispatchEvent(new w.Event("input"));
  seen.push(d.querySelector("#tensors [aria-live]").textContent);
  d.getElementById("theme").click(); seen.push(d.documentElement.dataset.theme);
  document.title = JSON.stringify(seen);
};
</script>"""


def test_it_is_used_by_keys_alone(page):
    frame = page.with_name("keys.html")
    frame.write_text(KEYS.replace("PAGE", page.name))
    dom = chromium("--allow-file-access-from-files", "--dump-dom", frame.as_uri()).stdout
    component, layer, back, cell, found, theme = json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))
    assert component.endswith(" › thinker.text") and back == component
    assert re.fullmatch(re.escape(component) + r" › layer \d", layer)
    assert cell.startswith("layer 1, expert 1: ")
    assert found.startswith("5 tensors, ")
    assert theme == "dark"
