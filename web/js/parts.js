// What the pack's elements on nodes have in common: made once a node, folded, laid out by the host, never a value.

import { app } from "../../../scripts/app.js";

const MARGIN = 4; // pixels that the classic canvas leaves around an element

export function link(path) {
  const href = new URL(path, import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
}

export function make(tag, className, text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

export function keep(node, property, value) {
  node.properties ??= {};
  if (value === undefined) delete node.properties[property];
  else node.properties[property] = value;
}

/** The element of that name on a node; made when first asked for. It has no value and is not saved as a widget. */
export function elementOn(node, name, type, build) {
  const found = node.widgets?.find((widget) => widget.name === name);
  if (found) return found.element;
  const box = build();
  box.least = 0;
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => box.least + 2 * MARGIN };
  box.widget = node.addDOMWidget(name, type, box, options);
  box.widget.serialize = false;
  size(node, box, 1, false);
  return box;
}

/** How high an element is to be, in pixels; with `grows`, at least so high, and it takes what room the node has. */
export function size(node, box, least, grows) {
  if (least === box.least && grows === box.grows) return;
  box.least = least;
  box.grows = grows;
  box.style.minHeight = `${least}px`;
  box.style.maxHeight = grows ? "" : `${least}px`;
  if (grows) {
    delete box.widget.computeSize;
    delete box.widget.computeLayoutSize; // the host's own is back
  } else {
    box.widget.computeSize = () => [0, least + 2 * MARGIN];
    box.widget.computeLayoutSize = undefined; // with which both canvases would stretch it
  }
  const [width, height] = node.computeSize();
  if (width > node.size[0] || height > node.size[1]) {
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  }
  node.graph?.setDirtyCanvas(true, true);
}

/** A button that shows and hides what it heads; whether it is folded is kept among the node's properties. */
export function foldButton(node, property, text, isFolded, changed) {
  const button = make("button", "fewstep-fold", text);
  button.type = "button";
  button.setAttribute("aria-expanded", String(!isFolded));
  button.addEventListener("click", () => {
    const before = node.computeSize()[1];
    keep(node, property, !isFolded);
    changed();
    const needed = node.computeSize()[1];
    if (needed < before) node.setSize([node.size[0], Math.max(needed, node.size[1] + needed - before)]); // no gap
  });
  return button;
}

export function isFolded(node, property, otherwise = false) {
  return node.properties?.[property] ?? otherwise;
}

/** Selecting text or pressing a button is not dragging the node; the wheel and the middle button stay the canvas's. */
export function shield(box, scrolls = () => false) {
  const isClassic = () => !globalThis.LiteGraph?.vueNodesMode;
  for (const kind of ["pointerdown", "mousedown"]) {
    box.addEventListener(kind, (event) => {
      if (event.button !== 1) event.stopPropagation();
      else if (kind === "pointerdown" && isClassic()) app.canvas?.processMouseDown?.(event);
    });
  }
  box.addEventListener("wheel", (event) => {
    if (scrolls()) event.stopPropagation();
    else if (isClassic()) app.canvas?.processMouseWheel?.(event);
  });
  box.addEventListener("keydown", (event) => event.stopPropagation()); // the space bar presses the button
}
