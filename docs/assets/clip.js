// The interactive picture of docs/clipping.md. tests/test_site.py holds rpgClip to rpg_ref.clipped_loss, point by point.
"use strict";

// slope(log v) = v·f′(v), as in rpg_ref/divergences.py.
const SLOPES = {
  fkl: () => -1,
  ufkl: (v) => v - 1,
  rkl: (v) => v * (Math.log(v) + 1),
  urkl: (v) => v * Math.log(v),
};

// One sample of π_old with π_ref = π_old: {loss, gradient}, the gradient with respect to log π_θ.
function rpgClip(w, { A, low, high, dual, beta, row, logOld }) {
  const excess = Math.max(Math.log(w) - Math.log(Math.max(1 + high, dual)) - 1, 0);
  const at = w * Math.exp(-excess);
  const C = -beta * SLOPES[row](at);
  const up = at * A + C >= 0;
  const live = up ? at < 1 + high : 1 - low < at && at < dual;
  const clamped = up ? Math.min(at, 1 + high) : Math.min(Math.max(at, 1 - low), dual);
  const weight = clamped * A + C;
  return { loss: -weight * (logOld + Math.log(w)), gradient: live ? -weight : 0 };
}
window.rpgClip = rpgClip;

const CLIP_CONTROLS = [
  ["low", "ε1", 0.01, 0.9, 0.01, 0.2],
  ["high", "ε2", 0.01, 1.5, 0.01, 0.28],
  ["dual", "c", 1.5, 12, 0.1, 10],
  ["beta", "β", 0, 1, 0.01, 0.1],
];
const LOG_OLD = Math.log(1 / 32);
const FROM = 1 / 8;
const TO = 16;
const TICKS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16];

function curves(values, key) {
  const places = Array.from({ length: 600 }, (_, i) => FROM * Math.pow(TO / FROM, i / 599));
  return [1, -1].map((A) => places.map((w) => [w, rpgClip(w, { ...values, A, logOld: LOG_OLD })[key]]));
}

function panel(values, key, title, left) {
  const [width, height, top] = [300, 190, 26];
  const both = curves(values, key);
  const all = both.flat().map((point) => point[1]);
  const [least, most] = [Math.min(...all, 0), Math.max(...all, 0)];
  const x = (w) => left + 34 + ((Math.log(w) - Math.log(FROM)) / (Math.log(TO) - Math.log(FROM))) * (width - 40);
  const y = (value) => top + height - ((value - least) / (most - least || 1)) * height;
  const edges = [["1 − ε1", 1 - values.low], ["1 + ε2", 1 + values.high], ["c", values.dual]];
  const dashes = edges.filter(([, w]) => w > FROM && w < TO).map(
    ([name, w], i) => `<line x1="${x(w)}" x2="${x(w)}" y1="${top}" y2="${top + height}" stroke="currentColor" stroke-dasharray="2 4" opacity=".5"/>` +
      `<text x="${x(w)}" y="${top - 3}" font-size="10" text-anchor="${["end", "start", "middle"][i]}" fill="currentColor">${name}</text>`);
  const ticks = TICKS.map((w) => `<text x="${x(w)}" y="${top + height + 14}" font-size="10" text-anchor="middle" fill="currentColor">${w < 1 ? "1/" + 1 / w : w}</text>`);
  const marks = [least, 0, most].filter((v, i, list) => list.indexOf(v) === i).map(
    (value) => `<text x="${left + 30}" y="${y(value) + 3}" font-size="10" text-anchor="end" fill="currentColor">${value.toFixed(1).replace("-", "−")}</text>`);
  const drawn = both.map((points, i) => `<path class="clip-${key}-${i ? "down" : "up"}" fill="none" stroke="${["#4477aa", "#cc5533"][i]}" stroke-width="2" d="M${points.map(([w, v]) => `${x(w).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}"/>`);
  return `<text x="${left + width / 2 + 10}" y="10" font-size="11" text-anchor="middle" fill="currentColor">${title}</text>
    <line x1="${left + 34}" x2="${left + width - 6}" y1="${y(0)}" y2="${y(0)}" stroke="currentColor" opacity=".4"/>
    ${dashes.join("")}${ticks.join("")}${marks.join("")}${drawn.join("")}
    <text x="${left + width / 2 + 10}" y="${top + height + 30}" font-size="11" text-anchor="middle" fill="currentColor">w = π_θ/π_old</text>`;
}

function clipPicture(box) {
  const values = Object.fromEntries(CLIP_CONTROLS.map(([name, , , , , start]) => [name, start]));
  values.row = "urkl";
  const controls = CLIP_CONTROLS.map(([name, label, least, most, step, start]) =>
    `<label>${label} = <output>${start}</output><input type="range" name="${name}" aria-label="${label}" min="${least}" max="${most}" step="${step}" value="${start}"></label>`);
  const rows = Object.keys(SLOPES).map((row) => `<option${row === values.row ? " selected" : ""}>${row}</option>`);
  box.innerHTML = `${controls.join("")}<label>divergence <select name="row" aria-label="divergence">${rows.join("")}</select></label>
    <div class="clip-panels"></div><p class="clip-key"><b style="color:#4477aa">A = +1</b>, <b style="color:#cc5533">A = −1</b>; π_ref = π_old, π_old of the sample 1/32.</p>`;
  const place = box.querySelector(".clip-panels");
  const draw = () => {
    const size = box.clientWidth < 560 ? [[0, 0], [0, 250]] : [[0, 0], [310, 0]];
    const [wide, high] = box.clientWidth < 560 ? [310, 500] : [620, 250];
    const parts = [["loss", "loss"], ["gradient", "∂ loss / ∂ log π_θ"]].map(([key, title], i) =>
      `<g transform="translate(0 ${size[i][1]})">${panel(values, key, title, size[i][0])}</g>`);
    place.innerHTML = `<svg viewBox="0 0 ${wide} ${high}" role="img" aria-label="RPG-Style Clip: loss and gradient over w">${parts.join("")}</svg>`;
  };
  box.addEventListener("input", (event) => {
    const { name, value } = event.target;
    values[name] = name === "row" ? value : Number(value);
    const output = event.target.parentElement.querySelector("output");
    if (output) output.textContent = value;
    draw();
  });
  window.addEventListener("resize", draw);
  draw();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".clip-picture").forEach(clipPicture));
