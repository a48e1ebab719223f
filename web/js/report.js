// What a node of FewStep has to say stays on it: the text and the plot of its UI output, in elements below its widgets.
//
// Both are kept among the node's properties too, so that they are there again when the page, or a saved workflow, is
// opened; where those know nothing, the host's last job may. What fails here is written to the console, and the nodes
// work without it.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { lastResult } from "./last_result.js";
import { showText } from "./panel.js";
import { keep, link } from "./parts.js";

const KEY = "fewstep"; // of the UI output, see nodes/host/progress.py
const TEXT = "fewstep_report"; // properties
const PLOT = "fewstep_plot"; // JSON in a string, one line of a saved workflow
const asked = new Set(); // graphs, by id
const plots = import("./plot.js").catch((error) => console.warn("FewStep draws no plots here:", error));

/** Text and plot, as they are kept, of a UI output; nothing where it has none of ours. */
function told(output) {
  const entries = output?.[KEY];
  if (!entries) return undefined;
  const plot = entries.map((entry) => entry.plot).findLast(Boolean);
  return { text: entries.map((entry) => entry.text).join("\n"), plot: plot && JSON.stringify(plot) };
}

async function show(node, { text, plot }) {
  try {
    showText(node, text);
    (await plots)?.showPlot(node, plot);
  } catch (error) {
    console.warn(`FewStep cannot show what ${node.type} says:`, error);
  }
}

function news(node, said) {
  keep(node, TEXT, said.text);
  keep(node, PLOT, said.plot);
  show(node, said);
}

app.registerExtension({
  name: "FewStep.Report",

  setup() {
    link("./style.css");
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("FewStep")) return;

    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const said = told(output);
      if (!said) return;
      news(this, said);
      api.dispatchCustomEvent?.("graphChanged"); // the host keeps its draft of the workflow, which a reload opens
    };

    const onConfigure = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      const { [TEXT]: text, [PLOT]: plot } = this.properties ?? {};
      if (text || plot) show(this, { text, plot });
    };
  },

  async afterConfigureGraph() {
    if (asked.has(app.graph.id)) return; // undoing opens a graph anew, and must not bring back what it took away
    asked.add(app.graph.id);
    const tell = (node, output) => node.properties?.[TEXT] === undefined && news(node, told(output));
    await lastResult(tell).catch((error) => console.warn("FewStep does not know the last job:", error));
  },
});
