// The interactive picture of docs/atlas.md. tests/test_site.py holds atlasCurve to losses written in tests/test_curves.py.
"use strict";

const coinKl = (p, q) => p * Math.log(p / q) + (1 - p) * Math.log((1 - p) / (1 - q));
const sech = (x) => 1 / Math.cosh(x);
const gone = (A, w, low, high) => (A > 0 ? w > high : w < low);

// c of one token for advantage A: its coefficient of ∇log π_θ. `old` is π_old of the token.
const ATLAS = {
  "no clip": (w, A) => w * A,
  "PPO clip": (w, A, p) => (gone(A, w, 1 - p.low, 1 + p.high) ? 0 : w * A),
  "dual clip": (w, A, p) => (gone(A, w, 1 - p.low, 1 + p.high) || (A < 0 && w > p.c) ? 0 : w * A),
  "exchanged min and max": (w, A, p) => (gone(-A, w, 1 - p.low, 1 + p.high) ? 0 : w * A),
  cap: (w, A, p) => Math.min(w, p.c) * A,
  mask: (w, A, p) => (w < 1 - p.low || w > p.c ? 0 : w * A),
  "smooth gate (SAPO)": (w, A, p) => w * sech((p.tau * (w - 1)) / 2) ** 2 * A,
  "quadratic gate": (w, A, p) => w * (1 - (Math.sign(A) * (w - 1)) / p.high) * A,
  "trust region by total variation": (w, A, p) => (gone(A, w, 1 - p.delta / p.old, 1 + p.delta / p.old) ? 0 : w * A),
  "trust region by KL(old‖new)": (w, A, p) =>
    coinKl(p.old, Math.min(w * p.old, 1 - 1e-12)) > p.delta && gone(A, w, 1, 1) ? 0 : w * A,
  "gamma weight (VESPO), w of the response": (w, A, p) =>
    Math.exp((A > 0 ? 2 : 3) * Math.log(w) + (A > 0 ? 3 : 2) * (1 - w)) * A,
};
const ATLAS_USES = {
  "PPO clip": ["low", "high"],
  "dual clip": ["low", "high", "c"],
  "exchanged min and max": ["low", "high"],
  cap: ["c"],
  mask: ["low", "c"],
  "smooth gate (SAPO)": ["tau"],
  "quadratic gate": ["high"],
  "trust region by total variation": ["delta", "old"],
  "trust region by KL(old‖new)": ["delta", "old"],
};
const ATLAS_CONTROLS = [
  ["low", "ε1", 0.01, 0.9, 0.01, 0.2],
  ["high", "ε2", 0.01, 1.5, 0.01, 0.28],
  ["c", "c or C", 1.5, 12, 0.1, 5],
  ["tau", "τ", 0.2, 6, 0.05, 1],
  ["delta", "δ", 0.01, 0.5, 0.01, 0.15],
  ["old", "π_old", 0.01, 0.95, 0.01, 0.1],
];

window.atlasCurve = (rule, w, A, values) => ATLAS[rule](w, A, values);

const ATLAS_PLACE = { from: 1 / 16, to: 16, width: 560, height: 240, left: 46, top: 14, high: 250 };

function atlasPath(rule, A, values, x, y) {
  const { from, to } = ATLAS_PLACE;
  // No probability is above 1.
  const end = ATLAS_USES[rule]?.includes("old") ? Math.min(to, 1 / values.old) : to;
  const places = Array.from({ length: 700 }, (_, i) => from * Math.pow(end / from, i / 699));
  return places.map((w) => `${x(w).toFixed(1)} ${y(ATLAS[rule](w, A, values)).toFixed(1)}`).join("L");
}

function atlasPanel(rule, values) {
  const { from, to, width, height, left, top } = ATLAS_PLACE;
  const most = 6;
  const x = (w) => left + ((Math.log(w) - Math.log(from)) / (Math.log(to) - Math.log(from))) * (width - left - 10);
  const y = (c) => top + (height / 2) * (1 - Math.max(-1, Math.min(1, c / most)));
  const ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8].map((w) =>
    `<text x="${x(w)}" y="${top + height + 14}" font-size="10" text-anchor="middle" fill="currentColor">${w < 1 ? "1/" + 1 / w : w}</text>`);
  const marks = [-most, 0, most].map((c) =>
    `<text x="${left - 6}" y="${y(c) + 3}" font-size="10" text-anchor="end" fill="currentColor">${String(c).replace("-", "−")}</text>`);
  const drawn = [1, -1].map((A) =>
    `<path class="atlas-${A > 0 ? "up" : "down"}" fill="none" stroke="${A > 0 ? "#4477aa" : "#cc5533"}" stroke-width="2" d="M${atlasPath(rule, A, values, x, y)}"/>`);
  return `<line x1="${left}" x2="${width - 10}" y1="${y(0)}" y2="${y(0)}" stroke="currentColor" opacity=".4"/>
    <line x1="${x(1)}" x2="${x(1)}" y1="${top}" y2="${top + height}" stroke="currentColor" stroke-dasharray="2 4" opacity=".5"/>
    ${ticks.join("")}${marks.join("")}${drawn.join("")}
    <text x="${width / 2}" y="${top + height + 30}" font-size="11" text-anchor="middle" fill="currentColor">w = π_θ/π_old</text>`;
}

function atlasPicture(box) {
  const values = Object.fromEntries(ATLAS_CONTROLS.map(([name, , , , , start]) => [name, start]));
  let rule = "PPO clip";
  const options = Object.keys(ATLAS).map((name) => `<option${name === rule ? " selected" : ""}>${name}</option>`);
  const controls = ATLAS_CONTROLS.map(([name, label, least, most, step, start]) =>
    `<label>${label} = <output>${start}</output><input type="range" name="${name}" aria-label="${label}" min="${least}" max="${most}" step="${step}" value="${start}"></label>`);
  box.innerHTML = `<label>rule <select name="rule" aria-label="rule">${options.join("")}</select></label>${controls.join("")}
    <div class="atlas-panel"></div><p class="clip-key">The coefficient c of a token: <b style="color:#4477aa">A = +1</b>, <b style="color:#cc5533">A = −1</b>.</p>`;
  const place = box.querySelector(".atlas-panel");
  const draw = () => {
    const used = ATLAS_USES[rule] ?? [];
    box.querySelectorAll("label:has(input)").forEach((label) => {
      label.hidden = !used.includes(label.querySelector("input").name);
    });
    place.innerHTML = `<svg viewBox="0 0 ${ATLAS_PLACE.width} ${ATLAS_PLACE.high + 40}" role="img" aria-label="The coefficient of a token over w under the rule ${rule}">${atlasPanel(rule, values)}</svg>`;
  };
  box.addEventListener("input", (event) => {
    const { name, value } = event.target;
    if (name === "rule") rule = value;
    else {
      values[name] = Number(value);
      event.target.parentElement.querySelector("output").textContent = value;
    }
    draw();
  });
  draw();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".atlas-picture").forEach(atlasPicture));
