// On a page that knows nothing of a node yet: what it said in the last job, if that job ran this very node.
//
// The host serves the last job with its prompt. A node's result holds where the node, and all that leads to it, is in
// the graph with the same inputs; what differs anywhere is left alone.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

function isLink(value) {
  return Array.isArray(value) && value.length === 2 && typeof value[1] === "number";
}

function same(now, then, id, seen = new Set()) {
  if (seen.has(id)) return true;
  seen.add(id);
  const [here, there] = [now[id], then[id]];
  if (!here || !there || here.class_type !== there.class_type) return false;
  const names = new Set([...Object.keys(here.inputs), ...Object.keys(there.inputs)]);
  return [...names].every((name) => {
    const [value, before] = [here.inputs[name], there.inputs[name]];
    if (JSON.stringify(value) !== JSON.stringify(before)) return false;
    return !isLink(value) || same(now, then, String(value[0]), seen);
  });
}

/** The node of an id of the prompt, which inside subgraphs is a path: 12:5. */
function nodeAt(id) {
  return id.split(":").reduce((found, part) => (found?.subgraph ?? found)?.getNodeById?.(Number(part)), app.graph);
}

/** Calls told(node, output) for every node of ours that holds from the last job. */
export async function lastResult(told) {
  const jobs = Object.values(await (await api.fetchApi("/history?max_items=1")).json());
  const [job] = jobs.filter(({ prompt, outputs }) => prompt?.[2] && outputs);
  if (!job) return;
  const now = (await app.graphToPrompt()).output;
  for (const [id, output] of Object.entries(job.outputs)) {
    const node = nodeAt(id);
    if (output?.fewstep && node && same(now, job.prompt[2], id)) told(node, output);
  }
}
