// What a node of FewStep has to say stays on it: the text of its UI output, and a plot where it sends one, in elements
// below its widgets.
//
// Both are also kept among the node's properties, so that they are there again when the page, or a saved workflow, is
// opened; where neither knows them, the host's last job may. The elements are made when there is something to say; they have no value and are never saved as widgets.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { lastResult } from "./last_result.js";
import { panel } from "./panel.js";
import { plotBox } from "./plot.js";

const KEY = "fewstep"; // of the UI output, see nodes/host/progress.py
const TEXT = "fewstep_report"; // properties, and the widgets' names
const PLOT = "fewstep_plot";
const asked = new Set(); // graphs, by id
const MARGIN = 16; // pixels that the host leaves around an element
const OPEN = "fewstep_open"; // property: whether the person unfolded the text, or folded it

function place(node, name, type, element, heights, onRemove) {
  const widget = node.addDOMWidget(name, type, element, { serialize: false, hideOnZoom: false, ...heights });
  widget.serialize = false;
  widget.onRemove = ((before) => () => (before?.call(widget), onRemove?.()))(widget.onRemove);
  return widget;
}

function grow(node) {
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  node.graph?.setDirtyCanvas(true, true);
}

function showText(node, text) {
  if (!node.fewstepPanel) {
    if (!text) return;
    const made = (node.fewstepPanel = panel((open) => {
      node.properties[OPEN] = open;
      requestAnimationFrame(fit);
    }));
    const height = () => made.height(node.size[0]);
    const fit = () => {
      made.box.style.minHeight = `${height()}px`;
      grow(node);
    };
    node.fewstepFit = fit;
    place(node, TEXT, "fewstepReport", made.box, { getMinHeight: () => height() + MARGIN, getMaxHeight: () => height() + MARGIN });
  }
  node.fewstepPanel.say(text, node.properties[OPEN]);
  node.fewstepFit();
}

function showPlot(node, data) {
  if (!node.fewstepPlot) {
    if (!data) return;
    const made = (node.fewstepPlot = plotBox());
    made.box.style.minHeight = `${made.height}px`;
    const height = () => (node.properties[PLOT] ? made.height + MARGIN : 0);
    place(node, PLOT, "fewstepPlot", made.box, { getMinHeight: height }, made.gone);
    grow(node);
  }
  node.fewstepPlot.box.style.display = data ? "flex" : "none";
  if (data) {
    node.fewstepPlot.draw(data).catch((error) => console.warn("FewStep: no plot on this node.", error));
  }
}

function show(node, { text, plot }) {
  node.properties ??= {};
  if (plot !== undefined) node.properties[PLOT] = plot;
  node.properties[TEXT] = text;
  showPlot(node, node.properties[PLOT]);
  showText(node, text);
}

function told(output) {
  const entries = output?.[KEY];
  if (!entries) return undefined;
  const plots = entries.map(({ plot }) => plot).filter((plot) => plot !== undefined);
  return { text: entries.map(({ text }) => text).join("\n"), plot: plots.length ? plots[plots.length - 1] : undefined };
}

app.registerExtension({
  name: "FewStep.Report",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("FewStep")) return;

    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const said = told(output);
      if (said === undefined) return;
      show(this, said);
      api.dispatchCustomEvent?.("graphChanged"); // the host keeps its draft of the workflow, which a reload opens
    };

    const onConfigure = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      const { [TEXT]: text, [PLOT]: plot } = this.properties ?? {};
      if (text || plot) show(this, { text: text ?? "", plot });
    };
  },

  async afterConfigureGraph() {
    if (asked.has(app.graph.id)) return; // undoing opens a graph anew, and must not bring back what it took away
    asked.add(app.graph.id);
    const tell = (node, output) => node.properties?.[TEXT] === undefined && show(node, told(output));
    await lastResult(tell).catch((error) => console.warn("FewStep: the last job is not known.", error));
  },
});
