"""The built site in a real browser, without a network: `make check-docs` builds it and runs these in Chromium."""

import functools
import http.server
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
import test_curves
import torch

from rpg_ref import DualClip, clipped_loss

playwright = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[1]
SITE = Path(os.environ.get("SITE", ROOT / "site"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.glob("**/*.html"))
# The pages of source code are made alike: one in ten stands for them.
LISTINGS = [name for name in PAGES if name.startswith("source/")]
PHONED = [name for name in PAGES if name not in LISTINGS] + LISTINGS[::10]
SHOTS = ROOT / "build/screenshots"
REVIEWED = ["index", "one-idea", "clipping", "errata", "audit"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not PAGES, reason="the site is not built; run `make check-docs`"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def base():
    """The site, served to this machine alone."""
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Tab:
    """A page, and what it complained of or asked of the network."""

    def __init__(self, browser, base, width, scheme="light"):
        self.base, self.said = base, []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.route(lambda url: not url.startswith(base), self.refuse)
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def refuse(self, route):
        self.said.append(f"asked for {route.request.url}")
        route.abort()

    def open(self, name):
        self.said.clear()
        self.page.goto(self.base + name)
        self.page.wait_for_load_state("networkidle")
        return self.page


@pytest.fixture(scope="module")
def phone(browser, base):
    return Tab(browser, base, 390)


@pytest.fixture(scope="module")
def desk(browser, base):
    return Tab(browser, base, 1280)


LOOK = """() => {
  const visible = (element) => element.getBoundingClientRect().width > 2 && element.getBoundingClientRect().height > 2;
  const drawings = [...document.querySelectorAll('.formula svg, figure.plot svg, .clip-picture svg')];
  const words = (document.querySelector('article') || document.body).cloneNode(true);
  words.querySelectorAll('code, pre').forEach((code) => code.remove());
  return {
    scroll: document.documentElement.scrollWidth - window.innerWidth,
    blank: drawings.filter((svg) => !visible(svg)).length,
    raw: (words.textContent.match(/\\$\\$|\\\\\\(|\\\\frac|\\\\mathbb/g) || []).length,
    pictures: [...document.querySelectorAll('article img')].filter((img) => !img.complete || !img.naturalWidth).length,
  };
}"""
WELL = {"scroll": 0, "blank": 0, "raw": 0, "pictures": 0}


@pytest.mark.parametrize("name", PHONED)
def test_a_page_is_well_on_a_phone(phone, name):
    """Formulas and plots are drawn, nothing is wider than the screen, nothing is asked of the network."""
    page = phone.open(name)
    if name != "404.html":
        assert page.evaluate(LOOK) == WELL
    assert phone.said == []


@pytest.mark.parametrize("name", [f"{name}.html" for name in REVIEWED])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots_for_review(browser, base, name, scheme, width):
    tab = Tab(browser, base, width, scheme)
    page = tab.open(name)
    assert page.evaluate(LOOK) == WELL and tab.said == []
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{Path(name).stem}-{width}-{scheme}.png", full_page=True)


def test_formulas_are_in_the_pages_ink(browser, base):
    inks = set()
    for scheme in ("light", "dark"):
        page = Tab(browser, base, 1280, scheme).open("ledger.html")
        inks.add(page.evaluate("getComputedStyle(document.querySelector('.formula path')).fill"))
    assert len(inks) == 2


@pytest.mark.parametrize("slider", ["low", "high", "dual", "beta"])
def test_a_slider_moves_the_curve(desk, slider):
    page = desk.open("clipping.html")
    paths = ".clip-picture path"
    before = page.eval_on_selector_all(paths, "all => all.map((path) => path.getAttribute('d'))")
    control = page.locator(f".clip-picture input[name={slider}]")
    shown = page.locator(f".clip-picture label:has(input[name={slider}]) output")
    value = shown.text_content()
    control.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft" if slider == "dual" else "ArrowRight")
    after = page.eval_on_selector_all(paths, "all => all.map((path) => path.getAttribute('d'))")
    assert shown.text_content() != value
    assert len(before) == len(after) == 4 and before != after


def test_another_divergence_is_another_curve(desk):
    page = desk.open("clipping.html")
    paths = ".clip-picture path"
    seen = set()
    for row in ("fkl", "ufkl", "rkl", "urkl"):
        page.select_option(".clip-picture select", row)
        seen.add(str(page.eval_on_selector_all(paths, "all => all.map((path) => path.getAttribute('d'))")))
    assert len(seen) == 4


def test_the_pictures_script_is_clipped_loss(desk):
    """Loss and gradient, for random bounds, strengths, advantages and ratios on both sides of every bound."""
    page = desk.open("clipping.html")
    rng = random.Random(0)
    for _ in range(200):
        row, A = rng.choice(["fkl", "ufkl", "rkl", "urkl"]), rng.choice([1.0, -1.0, rng.uniform(-2, 2)])
        low, high, dual, beta = rng.uniform(0, 0.9), rng.uniform(0, 1.5), rng.uniform(1.1, 12), rng.uniform(0, 1)
        w, log_old = 2 ** rng.uniform(-6, 5), -rng.uniform(4, 9)
        given = {"A": A, "low": low, "high": high, "dual": dual, "beta": beta, "row": row, "logOld": log_old}
        found = page.evaluate("([w, given]) => rpgClip(w, given)", [w, given])
        logp_old = torch.tensor([log_old], dtype=torch.float64)
        logp = (logp_old + torch.tensor([w], dtype=torch.float64).log()).requires_grad_()
        loss = clipped_loss(logp, logp_old, A, row, beta, clip=DualClip(low, high, dual))
        loss.sum().backward()
        assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-9, abs=1e-12)
        assert found["gradient"] == pytest.approx(float(logp.grad), rel=1e-9, abs=1e-12)


def atlas_losses(low, high, c, tau, delta, old):
    """The rules of the atlas, as tests/test_curves.py writes them anew."""
    return {
        "no clip": test_curves.no_clip,
        "PPO clip": test_curves.min_of_products(low, high),
        "dual clip": test_curves.dual(low, high, c),
        "exchanged min and max": test_curves.exchanged(low, high),
        "cap": test_curves.capped(0.0, c),
        "mask": test_curves.hard_mask(1 - low, c),
        "smooth gate (SAPO)": test_curves.sigmoid_gate(tau, tau),
        "quadratic gate": test_curves.quadratic_gate(high),
        "trust region by total variation": test_curves.total_variation_live(delta),
        "trust region by KL(old‖new)": test_curves.coin_kl(delta),
        "gamma weight (VESPO), w of the response": test_curves.gamma((2.0, 3.0), (3.0, 2.0)),
    }


def test_the_atlas_s_script_is_the_gradient_of_each_rule(desk):
    page = desk.open("atlas.html")
    rules = page.eval_on_selector_all(".atlas-picture option", "all => all.map((option) => option.textContent)")
    rng = random.Random(0)
    for _ in range(30):
        given = {"low": rng.uniform(0, 0.9), "high": rng.uniform(0.01, 1.5), "c": rng.uniform(1.6, 12)}
        given |= {"tau": rng.uniform(0.2, 6), "delta": rng.uniform(0.01, 0.5), "old": rng.uniform(0.01, 0.95)}
        losses = atlas_losses(**given)
        assert list(losses) == rules
        w, A = min(2 ** rng.uniform(-4, 4), 0.99 / given["old"]), rng.choice([1.0, -1.0])
        for rule, loss in losses.items():
            found = page.evaluate("([rule, w, A, given]) => atlasCurve(rule, w, A, given)", [rule, w, A, given])
            logp_old = torch.tensor([[given["old"]]], dtype=torch.float64).log()
            logp = (logp_old + torch.tensor([[w]], dtype=torch.float64).log()).requires_grad_()
            loss(logp, logp_old, logp_old, torch.tensor([A]).double(), torch.ones(1, 1).bool()).backward()
            assert found == pytest.approx(-float(logp.grad), rel=1e-9, abs=1e-12), rule


def test_each_rule_of_the_atlas_shows_its_own_sliders_and_curve(desk):
    page = desk.open("atlas.html")
    seen = set()
    rules = page.eval_on_selector_all(".atlas-picture option", "all => all.map((option) => option.textContent)")
    for rule in rules:
        page.select_option(".atlas-picture select", rule)
        paths = ".atlas-picture path"
        before = page.eval_on_selector_all(paths, "all => all.map((path) => path.getAttribute('d'))")
        seen.add(str(before))
        sliders = page.locator(".atlas-picture label:visible input[type=range]")
        for i in range(sliders.count()):
            sliders.nth(i).focus()
            # Above 6 the picture ends.
            key = "ArrowLeft" if sliders.nth(i).get_attribute("name") == "c" else "ArrowRight"
            for _ in range(10):
                page.keyboard.press(key)
            after = page.eval_on_selector_all(paths, "all => all.map((path) => path.getAttribute('d'))")
            assert len(after) == 2 and after != before, (rule, i)
            before = after
    assert len(seen) == len(rules)


def test_search_finds_a_page(desk):
    page = desk.open("index.html")
    page.locator("input.md-search__input").first.focus()
    page.keyboard.type("importance weight")
    page.wait_for_selector(".md-search-result__item", timeout=10_000)
    assert page.locator(".md-search-result__item").count() > 0
