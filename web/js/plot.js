// A plot on a node: schedules, or errors over model calls, as nodes/host/plots.py sends them. Drawn by uPlot.
//
// Everything is drawn at twice its size and scaled down, so that it stays sharp when the canvas is zoomed. uPlot takes
// the pointer's place from the page, which is wrong on a scaled canvas: `hover` finds it by shares of the plot's width.

const COLORS = ["#4c9be8", "#e0a458", "#5fb37a", "#c678b8", "#8a8a8a", "#d9655c"];
const SHARP = 2;
const HEIGHT = 128; // pixels, of the plot alone
const ROW = 16; // of the names above it, and of what is hovered below it
const FOLDER = new URL("./vendor/uPlot/", import.meta.url);

let loading; // of uPlot, once a page

function library() {
  loading ??= import(new URL("uPlot.esm.js", FOLDER)).then((module) => {
    const style = document.createElement("link");
    Object.assign(style, { rel: "stylesheet", href: new URL("uPlot.min.css", FOLDER) });
    document.head.append(style);
    return module.default;
  });
  return loading;
}

function css(name, otherwise) {
  return getComputedStyle(document.body).getPropertyValue(name).trim() || otherwise;
}

const ink = () => css("--input-text", "#ddd");
const faint = () => css("--border-color", "#4e4e4e");

function short(value) {
  return value === null || value === undefined ? "" : String(Number(value.toPrecision(4)));
}

// ---------------------------------------------------------------------------------------------------------
// What is drawn: curves of points {x, y, text}

function scheduleCurve({ label, sigmas, ratios }) {
  let calls = 0;
  const points = sigmas.map((sigma, i) => {
    const jump = i > 0 && sigma > sigmas[i - 1];
    if (i > 0 && !jump) calls += 1;
    const ratio = !ratios ? "" : `, noise/signal ${ratios[i] === null ? "infinite" : short(ratios[i])}`;
    const place = i < sigmas.length - 1 ? `step ${calls + 1}` : "end";
    return { x: calls, y: sigma, jump, text: `${jump ? "back up" : place}: sigma ${short(sigma)}${ratio}` };
  });
  return { label, points };
}

function errorCurve({ label, calls, errors }) {
  const points = calls.map((call, i) => ({ x: call, y: errors[i], text: `error ${errors[i]?.toExponential(1) ?? "unknown"}` }));
  return { label, points: points.filter((point) => point.y > 0) };
}

// Falling runs between jumps, each of which uPlot draws as a series of its own.
function runsOf(curves) {
  return curves.flatMap(({ points }, curve) => {
    const runs = [];
    for (const point of points) {
      if (point.jump || !runs.length) runs.push({ curve, points: [] });
      runs[runs.length - 1].points.push(point);
    }
    return runs;
  });
}

// A logarithm has no 0: it is drawn below all the rest.
function liftedFromZero(curves) {
  const above = curves.flatMap(({ points }) => points.map(({ y }) => y)).filter((y) => y > 0);
  const floor = Math.min(...above) / 3;
  for (const { points } of curves) for (const point of points) point.y = point.y > 0 ? point.y : floor;
}

// ---------------------------------------------------------------------------------------------------------
// The drawing

function options(runs, data, isLog) {
  const font = `${10 * SHARP}px sans-serif`;
  const axis = { stroke: ink, font, gap: 2 * SHARP, ticks: { size: 3 * SHARP, stroke: faint }, grid: { stroke: faint, width: 1 } };
  const listener = () => null;
  return {
    padding: [6 * SHARP, 8 * SHARP, 0, 0],
    legend: { show: false },
    cursor: {
      y: false,
      drag: { x: false, y: false, setScale: false },
      points: { size: 9 * SHARP },
      bind: Object.fromEntries(["mousedown", "mouseup", "click", "dblclick", "mousemove", "mouseleave", "mouseenter"].map((kind) => [kind, listener])),
    },
    scales: {
      x: { time: false, range: (_, low, high) => [low - 0.2, high + 0.2] },
      y: { distr: isLog ? 3 : 1, range: isLog ? undefined : (_, low, high) => [low, high * 1.05] },
    },
    axes: [
      { ...axis, size: 18 * SHARP, space: 28 * SHARP, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
      { ...axis, size: 42 * SHARP, space: 22 * SHARP, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) },
    ],
    series: [
      {},
      ...runs.map(({ curve, points }) => ({
        stroke: COLORS[curve % COLORS.length],
        width: 1.5 * SHARP,
        spanGaps: true,
        points: { show: points.length < 80, size: 5 * SHARP, fill: COLORS[curve % COLORS.length] },
      })),
    ],
    hooks: { drawClear: [(plot) => shade(plot, data.span)], draw: [(plot) => jumps(plot, runs)] },
  };
}

// The range of sigmas that the model knows.
function shade(plot, span) {
  if (!span) return;
  const { left, top, width, height } = plot.bbox;
  const inside = (sigma) => Math.min(top + height, Math.max(top, plot.valToPos(Math.max(sigma, 1e-9), "y", true)));
  const [low, high] = span.map(inside);
  plot.ctx.save();
  plot.ctx.globalAlpha = 0.1;
  plot.ctx.fillStyle = COLORS[0];
  plot.ctx.fillRect(left, high, width, low - high);
  plot.ctx.restore();
}

function jumps(plot, runs) {
  const { ctx } = plot;
  ctx.save();
  ctx.setLineDash([3 * SHARP, 3 * SHARP]);
  ctx.lineWidth = SHARP;
  runs.forEach(({ curve, points }, i) => {
    if (!points[0].jump) return;
    const before = runs[i - 1].points[runs[i - 1].points.length - 1];
    ctx.strokeStyle = COLORS[curve % COLORS.length];
    ctx.beginPath();
    for (const point of [before, points[0]]) ctx.lineTo(plot.valToPos(point.x, "x", true), plot.valToPos(point.y, "y", true));
    ctx.stroke();
  });
  ctx.restore();
}

function colored(text, curve) {
  const part = document.createElement("span");
  part.textContent = text;
  if (curve !== undefined) part.style.color = COLORS[curve % COLORS.length];
  return part;
}

// What is under the pointer, in words: every curve's points at the nearest number of calls.
function reading(curves, x) {
  const parts = [colored(`${x} ${x === 1 ? "call" : "calls"} `)];
  curves.forEach(({ points }, curve) => {
    const here = points.filter((point) => point.x === x);
    if (here.length) parts.push(colored("● ", curve), colored(`${here.map(({ text }) => text).join(", ")} `));
  });
  return parts;
}

function hover(plot, curves, row) {
  const idle = row.textContent;
  plot.over.addEventListener("pointermove", (event) => {
    const box = plot.over.getBoundingClientRect();
    const left = ((event.clientX - box.left) / box.width) * plot.over.clientWidth;
    plot.setCursor({ left, top: plot.over.clientHeight / 2 });
    row.replaceChildren(...reading(curves, plot.data[0][plot.posToIdx(left)]));
  });
  plot.over.addEventListener("pointerleave", () => {
    plot.setCursor({ left: -10, top: -10 });
    row.textContent = idle;
  });
}

// ---------------------------------------------------------------------------------------------------------

function row(part, style) {
  const made = document.createElement("div");
  made.className = `fewstep-plot-${part}`;
  Object.assign(made.style, { font: `10px/${ROW}px sans-serif`, color: "var(--input-text, #ddd)", overflow: "hidden", flex: "none", padding: "0 8px", ...style });
  return made;
}

// An element, a function that draws into it what nodes/host/plots.py sent, and one that ends it. It fills what room it
// is given, from `height` on.
export function plotBox() {
  const above = row("names", { height: `${ROW}px`, whiteSpace: "nowrap", textOverflow: "ellipsis" });
  const middle = row("drawing", { flex: `1 1 ${HEIGHT}px`, minHeight: `${HEIGHT}px`, padding: "0", position: "relative" });
  const below = row("reading", { height: `${2 * ROW}px` });
  const inner = document.createElement("div");
  Object.assign(inner.style, { transform: `scale(${1 / SHARP})`, transformOrigin: "0 0", position: "absolute" });
  middle.append(inner);
  const box = document.createElement("div");
  box.className = "fewstep-plot";
  Object.assign(box.style, { boxSizing: "border-box", width: "100%", display: "flex", flexDirection: "column", borderRadius: "6px", background: "var(--comfy-input-bg, #222)", overflow: "hidden" });
  box.append(above, middle, below);
  let plot;

  const size = () => ({ width: (middle.clientWidth || 300) * SHARP, height: (middle.clientHeight || HEIGHT) * SHARP });
  const resized = new ResizeObserver(() => {
    const { width, height } = size();
    if (plot && (Math.abs(plot.width - width) > 1 || Math.abs(plot.height - height) > 1)) plot.setSize({ width, height });
  });
  resized.observe(middle);

  async function draw(data) {
    const uPlot = await library();
    plot?.destroy();
    const isErrors = data.kind === "errors";
    const curves = data.series.map(isErrors ? errorCurve : scheduleCurve).filter(({ points }) => points.length);
    const isLog = isErrors || !data.flow;
    if (isLog) liftedFromZero(curves);
    const runs = runsOf(curves);
    const aligned = uPlot.join(runs.map(({ points }) => [points.map(({ x }) => x), points.map(({ y }) => y)]));
    above.replaceChildren(...curves.map(({ label }, curve) => colored(`● ${label}   `, curve)));
    below.textContent = isErrors ? "error over model calls" : "sigma over model calls";
    plot = new uPlot({ ...options(runs, data, isLog), ...size() }, aligned, inner);
    hover(plot, curves, below);
  }

  function gone() {
    resized.disconnect();
    plot?.destroy();
    plot = undefined;
  }

  return { box, draw, gone, height: HEIGHT + 3 * ROW };
}
