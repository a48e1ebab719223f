// The text of a node: what comes before its first empty line, or its first line, is always in view, the rest folds where
// it is long. Line breaks are kept.

const LINE = 15; // pixels
const UNFOLDED = 8; // lines that are shown without asking
const MOST_LINES = 14; // then it scrolls

function lines(text, width) {
  const perLine = Math.max(20, Math.floor((width - 40) / 6.7));
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / perLine)), 0);
}

function restOf(text) {
  const empty = text.indexOf("\n\n");
  const line = text.indexOf("\n");
  return empty > 0 ? text.slice(empty + 2) : line > 0 ? text.slice(line + 1) : "";
}

// onFold is told, of every fold and unfold by hand, whether it is open now.
export function panel(onFold) {
  const box = document.createElement("details");
  const head = document.createElement("summary");
  const body = document.createElement("div");
  box.className = "fewstep-report";
  box.append(head, body);
  Object.assign(box.style, {
    boxSizing: "border-box",
    width: "100%",
    padding: "6px 8px",
    borderRadius: "6px",
    font: `11px/${LINE}px ui-monospace, monospace`,
    color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)",
    overflowY: "auto",
    userSelect: "text",
  });
  for (const part of [head, body]) {
    Object.assign(part.style, { whiteSpace: "pre-wrap", overflowWrap: "anywhere", cursor: "text", tabSize: 4 });
  }
  // Selecting a sentence, or scrolling, is not dragging the node or zooming the canvas.
  for (const kind of ["pointerdown", "mousedown", "wheel"]) {
    box.addEventListener(kind, (event) => event.stopPropagation());
  }
  let text = "";
  head.addEventListener("click", (event) => {
    const selecting = window.getSelection()?.toString() && event.detail > 0;
    if (selecting || !body.textContent) event.preventDefault();
    else onFold(!box.open); // the browser turns it after this
  });
  return {
    box,
    // open: as the person left it, or undefined.
    say(said, open) {
      text = said;
      const rest = restOf(text);
      head.textContent = text.slice(0, text.length - rest.length);
      body.textContent = rest;
      Object.assign(head.style, rest ? { display: "list-item", cursor: "pointer" } : { display: "block", cursor: "text" });
      box.open = open ?? rest.split("\n").length < UNFOLDED;
    },
    height(width) {
      const shown = box.open ? text : head.textContent.trimEnd();
      return Math.min(lines(shown, width), MOST_LINES) * LINE + 14;
    },
  };
}
