// What a node of FewStep has to say stays on it: the text of its UI output, in an element below its widgets.
//
// The text is also kept among the node's properties, so that it is there again when the page, or a saved workflow, is
// opened. The element is made when there is something to say; it has no value of its own and is never saved as a widget.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const KEY = "fewstep"; // of the UI output, see nodes/host/progress.py
const PROPERTY = "fewstep_report";
const LINE = 15; // pixels
const MOST_LINES = 14; // then it scrolls

function element() {
  const box = document.createElement("div");
  box.className = "fewstep-report";
  Object.assign(box.style, {
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere",
    overflowY: "auto",
    boxSizing: "border-box",
    width: "100%",
    padding: "6px 8px",
    borderRadius: "6px",
    font: `11px/${LINE}px ui-monospace, monospace`,
    color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)",
    userSelect: "text",
    cursor: "text",
  });
  // Selecting a sentence, or scrolling, is not dragging the node or zooming the canvas.
  for (const kind of ["pointerdown", "mousedown", "wheel"]) {
    box.addEventListener(kind, (event) => event.stopPropagation());
  }
  return box;
}

function lines(node, text) {
  const perLine = Math.max(20, Math.floor((node.size[0] - 40) / 6.7));
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / perLine)), 0);
}

function height(node, text) {
  return Math.min(lines(node, text), MOST_LINES) * LINE + 14;
}

function show(node, text) {
  node.properties ??= {};
  node.properties[PROPERTY] = text;
  let widget = node.widgets?.find((candidate) => candidate.name === PROPERTY);
  if (!widget) {
    if (!text) return;
    const box = element();
    widget = node.addDOMWidget(PROPERTY, "fewstepReport", box, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => height(node, box.textContent),
    });
    widget.serialize = false;
  }
  widget.element.textContent = text;
  widget.element.style.minHeight = `${height(node, text)}px`;
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  node.graph?.setDirtyCanvas(true, true);
}

function told(output) {
  return output?.[KEY]?.map((entry) => entry.text).join("\n");
}

app.registerExtension({
  name: "FewStep.Report",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("FewStep")) return;

    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const text = told(output);
      if (text === undefined) return;
      show(this, text);
      api.dispatchCustomEvent?.("graphChanged"); // the host keeps its draft of the workflow, which a reload opens
    };

    const onConfigure = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      if (this.properties?.[PROPERTY]) show(this, this.properties[PROPERTY]);
    };
  },
});
