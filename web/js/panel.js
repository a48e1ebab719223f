// What a node has to say, as text below its widgets: what comes before its first empty line, or its first line, is
// always in view, the rest folds where it is long.
//
// A folded text is whole in the page all the same, with its line breaks, so that it is found and copied as it was said.

import { elementOn, foldButton, isFolded, make, shield, size } from "./parts.js";

const NAME = "fewstep_report";
const FOLDED = "fewstep_folded";
const LINE = 15; // pixels
const LONG = 8; // lines; more are folded until a person unfolds them
const MOST_LINES = 20; // then it scrolls
const FRAME = 12; // pixels
const LETTER = 6.7; // pixels

function build() {
  const box = make("div", "fewstep-box fewstep-report");
  box.append(make("div", "fewstep-text"));
  shield(box, () => box.scrollHeight > box.clientHeight + 1);
  return box;
}

/** First line, what else stays in view, and what folds; together they are the text. */
function parted(text) {
  const ends = [text.indexOf("\n"), text.indexOf("\n\n")].map((end) => (end < 0 ? text.length : end));
  const [line, kept] = [ends[0], text.includes("\n\n") ? ends[1] : ends[0]];
  return [text.slice(0, line), text.slice(line, kept), text.slice(kept)];
}

const linesOf = (text) => (text ? text.trim().split("\n") : []);

/** How high the text will be, where the page has not laid it out. */
function estimated(node, shown) {
  const perLine = Math.max(20, Math.floor((node.size[0] - 44) / LETTER));
  return linesOf(shown).reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / perLine)), 0) * LINE + 4;
}

/** Sizes the box by its content, now and whenever the lines wrap anew, as where the node's width changes. */
function fitted(node, box, shown) {
  const content = box.firstElementChild;
  const fit = () => {
    const height = content.offsetHeight || estimated(node, shown);
    size(node, box, Math.min(height, MOST_LINES * LINE) + FRAME, false);
  };
  fit();
  box.watch?.disconnect();
  box.watch = new ResizeObserver(fit);
  box.watch.observe(content);
}

export function showText(node, text) {
  if (!text && !node.widgets?.some((widget) => widget.name === NAME)) return;
  const box = elementOn(node, NAME, "fewstepReport", build);
  const content = box.firstElementChild;
  const [first, kept, rest] = parted(text ?? "");
  const hidden = linesOf(rest).length;
  const folded = isFolded(node, FOLDED, hidden >= LONG);
  const button = foldButton(node, FOLDED, first, folded, () => showText(node, text));
  button.disabled = hidden === 0;
  if (folded && hidden) button.dataset.more = `… ${hidden} more ${hidden === 1 ? "line" : "lines"}`;
  const more = Object.assign(make("span", "", rest), { hidden: folded });
  const hadFocus = content.contains(document.activeElement);
  content.replaceChildren(button, make("span", "", kept), more);
  if (hadFocus) button.focus();
  fitted(node, box, folded ? first + kept : text ?? "");
}
