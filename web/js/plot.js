// Live plots on nodes, by uPlot: schedules over model calls, and errors over model calls; see nodes/host/plots.py.
//
// A canvas that the host scales with its zoom blurs, and takes the pointer to be elsewhere. So a plot is drawn in the
// pixels of the screen and scaled back, and drawn anew when zoom, size, colours or numbers are others.

import { elementOn, foldButton, isFolded, keep, link, make, shield, size } from "./parts.js";
import uPlot from "./vendor/uPlot/uPlot.esm.js";

const NAME = "fewstep_plot_view";
const FOLDED = "fewstep_plot_folded";
const VIEW = "fewstep_plot_axis";
const COLORS = {
  onDark: ["#4c9be8", "#e0a458", "#5fb37a", "#c678b8", "#d9655c", "#a3a844", "#2fa7b5", "#9b88ea"],
  onLight: ["#1d5fa3", "#7d4a00", "#1c6236", "#80357a", "#93261f", "#505412", "#0d5a63", "#4f3bab"],
};
const DASHES = [[], [7, 3], [2, 2.5], [9, 3, 2, 3]]; // so that no line is told by its colour alone
const HEADED = 27; // pixels, of what stays when it is folded
const DRAWN = 190; // pixels, of the rest
const EVERY = 200; // milliseconds, to look whether zoom or colours have changed, of which the host tells nobody
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]; // of calls between two marks of the axis
const MANY = 60; // points; more are a line without marks
const LABELLED = 20; // pixels from one label of a logarithmic axis to the next
const ROOM = 1.2; // of a logarithmic axis, beyond its ends
const ASIDE = 0.06; // of another one
const FLOOR = 0.4; // of the least number, where a logarithmic axis shows 0
const GAP = 12; // pixels between a point and what is told of it
const BESIDE = 2; // beyond all others, where the axis of log-SNR shows infinity

link("./vendor/uPlot/uPlot.min.css");

// ---------------------------------------------------------------------------------------------------------
// From what Python sent to points

function number(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : value < 0 ? "-∞" : "∞";
}

const counted = (calls) => `${calls} ${calls === 1 ? "call" : "calls"}`;

/** Of a noise-to-signal, where null is infinite. */
function logSnr(ratio) {
  return ratio === null ? -Infinity : -2 * Math.log(ratio);
}

function placeOf({ calls, steps }, i) {
  if (i === calls.length - 1) return "end";
  return calls[i + 1] === calls[i] ? "back up from here" : `step ${steps[i]}`;
}

function schedulePoints(series, view) {
  const { calls, sigmas, ratios } = series;
  const points = sigmas.map((sigma, i) => ({
    x: calls[i],
    y: view === "sigma" ? sigma : logSnr(ratios[i]),
    isJump: i > 0 && calls[i] === calls[i - 1],
    rows: [
      `${placeOf(series, i)}, after ${counted(calls[i])}`,
      `sigma ${number(sigma)}`,
      ...(ratios ? [`noise/signal ${number(ratios[i] ?? Infinity)}`, `log-SNR ${number(logSnr(ratios[i]))}`] : []),
    ],
  }));
  return points.filter(({ y }) => y !== null && !Number.isNaN(y));
}

function errorPoints(series) {
  const points = series.calls.map((calls, i) => ({
    x: calls,
    y: series.errors[i],
    rows: [counted(calls), `error ${series.errors[i]?.toExponential(2)}`],
  }));
  return points.filter(({ y }) => y !== null);
}

const KINDS = {
  schedule: {
    views: ({ series }) => (series.every(({ ratios }) => ratios) ? ["sigma", "log-SNR"] : ["sigma"]),
    title: (view) => `${view} over model calls`,
    isLog: (plot, view) => view === "sigma" && !plot.flow, // a flow model's sigmas are shares, from 1 to 0
    points: schedulePoints,
    span: (plot, view) => (view === "sigma" ? plot.span : plot.span_ratios?.map(logSnr).reverse()),
  },
  errors: {
    views: () => ["error"],
    title: () => "error over model calls",
    isLog: () => true,
    points: errorPoints,
    span: () => null,
  },
};

/** The ends of the axis of what is drawn. What has no place between them is put on one of them, as an edge. */
function placed(points, isLog) {
  const isBelow = (y) => y === -Infinity || (isLog && y <= 0);
  const known = points.map(({ y }) => y).filter((y) => Number.isFinite(y) && !isBelow(y));
  let [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [1, 1];
  if (points.some(({ y }) => isBelow(y))) low = isLog ? low * FLOOR : low - BESIDE;
  if (points.some(({ y }) => y === Infinity)) high = isLog ? high / FLOOR : high + BESIDE;
  if (low === high) [low, high] = isLog ? [low / 2, high * 2] : [low - 1, high + 1];
  for (const point of points) {
    point.isEdge = isBelow(point.y) || point.y === Infinity;
    point.at = point.isEdge ? (point.y === Infinity ? high : low) : point.y;
  }
  const room = (high - low) * ASIDE;
  return isLog ? [low / ROOM, high * ROOM] : [low - room, high + room];
}

/** What is drawn: series of points, and the ends of both axes. */
function chartOf(plot, view) {
  const kind = KINDS[plot.kind];
  const isLog = kind.isLog(plot, view);
  const series = plot.series.map((one, i) => ({
    label: one.label,
    dash: DASHES[i % DASHES.length],
    points: kind.points(one, view),
  }));
  const all = series.flatMap(({ points }) => points);
  const xs = all.map(({ x }) => x);
  const [left, right] = xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1];
  const side = Math.max(0.25, (right - left) * 0.03);
  return { series, isLog, y: placed(all, isLog), x: [left - side, right + side], span: kind.span(plot, view), view };
}

// ---------------------------------------------------------------------------------------------------------
// Drawing

function colorsOf(area) {
  const styles = getComputedStyle(area);
  return Object.fromEntries(["text", "quiet", "line"].map((name) => [name, styles.getPropertyValue(`--fewstep-${name}`)]));
}

const brightnesses = new Map(); // by colour, as the page writes it

/** 0 to 255; asked of a canvas, which reads every way of writing a colour. */
function brightness(color) {
  if (!brightnesses.has(color)) {
    const ctx = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    ctx.fillStyle = color;
    ctx.fillRect(0, 0, 1, 1);
    const [red, green, blue] = ctx.getImageData(0, 0, 1, 1).data;
    brightnesses.set(color, (red + green + blue) / 3);
  }
  return brightnesses.get(color);
}

/** Gives the series colours that are seen beside a text of that colour, in the legend too. */
function colored(area, { series }, text) {
  const colors = brightness(text) < 128 ? COLORS.onLight : COLORS.onDark;
  const entries = area.nextElementSibling?.children ?? [];
  series.forEach((one, i) => {
    one.color = colors[i % colors.length];
    entries[i]?.style.setProperty("--fewstep-color", one.color);
  });
}

function zoomOf(area) {
  const zoom = area.getBoundingClientRect().width / area.offsetWidth;
  return Math.min(4, Math.max(0.25, Math.round(zoom * 100) / 100));
}

/** Round numbers for a logarithmic axis between two that are not, as many as it has room for. */
function decades(low, high, most) {
  const sets = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]];
  const exponents = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) exponents.push(e);
  const within = (digits) =>
    exponents.flatMap((e) => digits.map((d) => Number(`${d}e${e}`))).filter((split) => split >= low && split <= high);
  return sets.map(within).find((splits) => splits.length <= most) ?? within([1]).filter((_, i) => i % 3 === 0);
}

function axes(chart, colors, zoom, height) {
  const common = {
    stroke: colors.quiet,
    font: `${10 * zoom}px ui-monospace, monospace`,
    grid: { stroke: colors.line, width: 0.5 * zoom },
    ticks: { show: false },
    gap: 4 * zoom,
  };
  const named = (u, splits) => splits.map((split) => (split === null ? "" : number(split)));
  const short = (u, splits) => splits.map((split) => (split === null ? "" : split.toExponential(0)));
  const log = {
    splits: (u, _, low, high) => decades(low, high, height / LABELLED),
    filter: (u, splits) => splits,
  };
  return [
    { ...common, size: 20 * zoom, space: 34 * zoom, incrs: WHOLE, values: named },
    { ...common, size: 42 * zoom, space: 22 * zoom, values: chart.view === "error" ? short : named, ...(chart.isLog && log) },
  ];
}

function paint(u, chart, zoom, colors) {
  const { ctx, bbox } = u;
  const unit = zoom * uPlot.pxRatio;
  const at = ({ x, at: y }) => [u.valToPos(x, "x", true), u.valToPos(y, "y", true)];
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  if (chart.span?.every((end) => end !== null)) {
    const [low, high] = chart.span.map((end) => Math.min(Math.max(end, chart.y[0]), chart.y[1]));
    const [top, bottom] = [high, low].map((end) => u.valToPos(end, "y", true));
    ctx.globalAlpha = 0.09;
    ctx.fillStyle = colors.text;
    ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    ctx.globalAlpha = 1;
  }
  for (const { color, dash, points } of [...chart.series].reverse()) {
    ctx.strokeStyle = ctx.fillStyle = color;
    points.slice(1).forEach((point, i) => {
      ctx.lineWidth = (point.isJump ? 1 : 1.6) * unit;
      ctx.setLineDash((point.isJump ? [3, 3] : point.isEdge || points[i].isEdge ? [1.5, 3] : dash).map((d) => d * unit));
      ctx.beginPath();
      ctx.moveTo(...at(points[i]));
      ctx.lineTo(...at(point));
      ctx.stroke();
    });
    ctx.setLineDash([]);
    ctx.lineWidth = 1.3 * unit;
    for (const point of points.length > MANY ? [] : points) {
      ctx.beginPath();
      ctx.arc(...at(point), 2.4 * unit, 0, 2 * Math.PI);
      if (point.isEdge) ctx.stroke(); // as good as 0, or infinite
      else ctx.fill();
    }
  }
  ctx.restore();
}

function draw(area, state) {
  const [width, height] = [area.offsetWidth, area.offsetHeight];
  if (width < 40 || height < 40) return;
  const [zoom, colors] = [zoomOf(area), colorsOf(area)];
  const key = JSON.stringify([width, height, zoom, devicePixelRatio, colors]);
  if (key === state.key) return;
  state.key = key;
  state.zoom = zoom;
  state.isFollowed = false;
  state.u?.destroy();
  drawings.add(area);
  const drawn = area.firstElementChild;
  drawn.style.transform = `scale(${1 / zoom})`;
  const { chart } = state;
  colored(area, chart, colors.text);
  state.u = new uPlot(
    {
      width: width * zoom,
      height: height * zoom,
      padding: [6 * zoom, 6 * zoom, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false, setScale: false } },
      scales: {
        x: { time: false, range: chart.x },
        y: { distr: chart.isLog ? 3 : 1, range: chart.y },
      },
      axes: axes(chart, colors, zoom, height),
      series: [{}, { paths: () => null, points: { show: false } }], // lines that stand still, or jump, are our own
      hooks: {
        draw: [(u) => paint(u, chart, zoom, colors)],
        setCursor: [(u) => followed(area, state, nearest(u, chart))],
      },
    },
    [chart.x, chart.y],
    drawn
  );
  point(area, state, state.found);
}

/** What is not in the page keeps no drawing, which would listen to the window for ever; once back, it is drawn anew. */
function erase(area) {
  const state = states.get(area);
  state.u?.destroy();
  state.u = state.key = null;
  drawings.delete(area);
}

// ---------------------------------------------------------------------------------------------------------
// What the pointer, or a key, points at

function nearest(u, chart) {
  const { left, top } = u.cursor;
  if (!(left >= 0)) return null;
  let [found, least] = [null, Infinity];
  for (const series of chart.series) {
    for (const point of series.points) {
      const away = Math.hypot(u.valToPos(point.x, "x") - left, (u.valToPos(point.at, "y") - top) / 4);
      if (away < least) [found, least] = [{ series, point }, away];
    }
  }
  return found;
}

/** The pointer's place; one that was never there takes nothing away from what a key has chosen. */
function followed(area, state, found) {
  if (found || state.isFollowed) point(area, state, found);
  state.isFollowed = Boolean(found);
}

function point(area, state, found) {
  const [dot, tip] = [area.querySelector(".fewstep-dot"), area.querySelector(".fewstep-tip")];
  state.found = found;
  dot.hidden = tip.hidden = !found;
  if (!found) return;
  const { u, zoom, chart } = state;
  const x = (u.over.offsetLeft + u.valToPos(found.point.x, "x")) / zoom;
  const y = (u.over.offsetTop + u.valToPos(found.point.at, "y")) / zoom;
  Object.assign(dot.style, { left: `${x}px`, top: `${y}px`, background: found.series.color });
  const label = chart.series.length > 1 ? [found.series.label] : [];
  tip.textContent = [...label, ...found.point.rows].join("\n");
  beside(area, tip, x, y, found.series.points);
}

/** The tip, on the side of the line where there is nothing; on a narrow node above or below what it tells of. */
function beside(area, tip, x, y, points) {
  const [width, height] = [area.offsetWidth, area.offsetHeight];
  const isRight = x > width / 2;
  const wanted = isRight ? x - GAP - tip.offsetWidth : x + GAP;
  const left = Math.max(0, Math.min(wanted, width - tip.offsetWidth));
  const isAbove = left === wanted ? points[0].at > points.at(-1).at !== isRight : y > height / 2;
  Object.assign(tip.style, { left: `${left}px`, top: isAbove ? "4px" : "", bottom: isAbove ? "" : "24px" });
}

function step(area, state, event) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const other = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const { series } = state.chart;
  if (!(by || other) || !series.length || !state.u) return;
  event.preventDefault();
  const number = Math.max(0, series.indexOf(state.found?.series));
  const chosen = series[(number + (other ?? 0) + series.length) % series.length];
  const before = chosen.points.indexOf(state.found?.point);
  const next = by ? Math.min(chosen.points.length - 1, Math.max(0, before + by)) : 0;
  if (chosen.points.length) point(area, state, { series: chosen, point: chosen.points[next] });
}

// ---------------------------------------------------------------------------------------------------------
// On the node

const states = new WeakMap(); // of the areas to draw in
const drawings = new Set(); // those that are drawn

function build() {
  const box = make("div", "fewstep-box fewstep-plot");
  shield(box);
  return box;
}

function areaFor(chart, title) {
  const area = make("div", "fewstep-plot-area");
  const [dot, tip] = [make("div", "fewstep-dot"), make("div", "fewstep-tip")];
  dot.hidden = tip.hidden = true;
  area.append(make("div", "fewstep-plot-drawn"), dot, tip);
  area.tabIndex = 0;
  area.setAttribute("role", "img");
  area.setAttribute("aria-label", `${title}: ${chart.series.map(({ label }) => label).join(", ")}. Arrow keys read it.`);
  const state = { chart, found: null, isFollowed: false };
  states.set(area, state);
  area.addEventListener("keydown", (event) => step(area, state, event));
  area.addEventListener("pointermove", () => state.u?.syncRect(true), true); // the canvas may have moved under uPlot
  area.addEventListener("pointerleave", () => document.activeElement !== area && point(area, state, null));
  area.addEventListener("blur", () => point(area, state, null));
  new ResizeObserver(() => draw(area, state)).observe(area);
  return area;
}

function legendFor(chart) {
  const legend = make("div", "fewstep-legend");
  for (const { label, dash } of chart.series) {
    const entry = make("span", "", label);
    entry.style.setProperty("--fewstep-dash", dash.length ? (dash[0] < 3 ? "dotted" : "dashed") : "solid");
    legend.append(entry);
  }
  if (chart.span) legend.append(make("em", "", "shaded: the model's range"));
  return legend;
}

/** Draws what Python sent, JSON in a string; without it nothing is there. */
export function showPlot(node, json) {
  const there = node.widgets?.some((widget) => widget.name === NAME);
  if (!json && !there) return;
  const box = elementOn(node, NAME, "fewstepPlot", build);
  const plot = json ? JSON.parse(json) : null;
  const kind = KINDS[plot?.kind];
  box.hidden = !kind;
  if (!kind) {
    box.replaceChildren();
    size(node, box, 1, false);
    return;
  }
  const again = () => showPlot(node, json);
  const views = kind.views(plot);
  const view = views.find((name) => name === node.properties?.[VIEW]) ?? views[0];
  const folded = isFolded(node, FOLDED);
  const head = make("div", "fewstep-plot-head");
  head.append(foldButton(node, FOLDED, kind.title(view), folded, again));
  if (views.length > 1 && !folded) head.append(switchFor(node, views, view, again));
  const chart = chartOf(plot, view);
  box.replaceChildren(head, ...(folded ? [] : [areaFor(chart, kind.title(view)), legendFor(chart)]));
  size(node, box, folded ? HEADED : HEADED + DRAWN, !folded);
}

function switchFor(node, views, view, changed) {
  const other = views[(views.indexOf(view) + 1) % views.length];
  const button = Object.assign(make("button", "fewstep-switch", other), { type: "button", title: `Show ${other}` });
  button.addEventListener("click", () => {
    keep(node, VIEW, other);
    changed();
  });
  return button;
}

setInterval(() => {
  if (document.hidden) return;
  for (const area of document.querySelectorAll(".fewstep-plot-area")) draw(area, states.get(area));
  for (const area of drawings) if (!area.isConnected) erase(area);
}, EVERY);
