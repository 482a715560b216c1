// Draws a page's widgets from the states that its notebook stored; there is no kernel. It knows the figures of
// `helpers.explorer`, which carry their states, and widgets of plain HTML. Their controls become the browser's own, with
// the options that are stored. (Jupyter's widget manager would draw any widget, at the price of 760 kB a page.)
const MIME = "application/vnd.jupyter.widget";
const colab = document.querySelector('a[href^="https://colab.research.google.com/github/"]')?.href;
const make = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
let controls = 0;

// Return a button that moves a slider to its end, a step every 700 ms; for those who asked for less motion, none.
function player(input) {
  let timer;
  const stop = () => { clearInterval(timer); timer = undefined; button.textContent = "Play"; };
  const move = () => {
    if (input.value === input.max || !input.isConnected) return stop();
    input.stepUp();
    input.dispatchEvent(new Event("input"));
  };
  const button = make("button", { type: "button", className: "explorer-play", textContent: "Play" });
  button.onclick = () => {
    if (timer) return stop();
    if (input.value === input.max) { input.value = 0; input.dispatchEvent(new Event("input")); }
    timer = setInterval(move, 700);
    button.textContent = "Pause";
  };
  for (const event of ["pointerdown", "keydown"]) input.addEventListener(event, stop);
  return button;
}

// Return a control that offers the stored options only, and a function that tells which of them is chosen.
function control({ _model_name: kind, _options_labels: labels, index, description }, kept, changed) {
  const names = kept.map((place) => labels[place]);
  const start = kept.indexOf(index);
  const id = `explorer-control-${controls++}`;
  const box = make("div", { className: "explorer-control", hidden: kept.length === 1 }, make("label", { htmlFor: id }, description));
  if (kind === "DropdownModel") {
    const input = make("select", { id, onchange: changed }, ...names.map((name) => make("option", {}, name)));
    input.selectedIndex = start;
    box.append(input);
    return [box, () => input.selectedIndex];
  }
  const print = make("span", { ariaHidden: "true" });
  const say = () => (print.textContent = input.ariaValueText = names[input.value]);
  const input = make("input", { id, type: "range", min: 0, max: kept.length - 1, value: start });
  input.oninput = () => changed(say());
  say();
  box.append(input, print);
  return [box, () => input.valueAsNumber];
}

// Return a figure of helpers.explorer: controls, further widgets, the picture, the words below it, and the stored states.
function explorer(parts) {
  const { kept, frames, shared, play } = JSON.parse(parts.at(-1).value.replace(/^<script[^>]*>|<\/script>$/g, ""));
  const picture = make("div", { innerHTML: parts.at(-3).value });
  const words = make("p", { className: "explorer-words", ariaLive: "polite", innerHTML: parts.at(-2).value });
  const inputs = kept.map((places, i) => control(parts[i], places, show));
  if (play != null && !matchMedia("(prefers-reduced-motion: reduce)").matches)
    inputs[play][0].append(player(inputs[play][0].querySelector("input")));
  function show() {
    const [html, text] = frames[inputs.reduce((place, [, chosen], i) => place * kept[i].length + chosen(), 0)];
    picture.innerHTML = html.replace(/\{(\d+)\}/g, (_, n) => shared[n]);
    words.innerHTML = text;
  }
  const notes = parts.slice(kept.length, -3).filter((part) => part._dom_classes.includes("no-kernel"));
  const link = colab ? `<a href="${colab}">open this chapter in Colab</a>` : "open this chapter in Jupyter or Colab";
  return make(
    "div",
    { className: "explorer" },
    ...inputs.map(([box]) => box),
    ...notes.map(({ value }) => make("p", { innerHTML: value.replace("{colab}", link) })),
    picture,
    words,
  );
}

for (const script of document.querySelectorAll(`script[type="${MIME}-state+json"]`)) {
  const models = JSON.parse(script.textContent).state;
  const state = (reference) => models[reference.replace("IPY_MODEL_", "")].state;
  for (const place of document.querySelectorAll(`script[type="${MIME}-view+json"]`)) {
    const widget = state(JSON.parse(place.textContent).model_id);
    const drawn = make("div", { className: "drawn-widget" });
    if (widget._dom_classes.includes("explorer")) drawn.append(explorer(widget.children.map(state)));
    else if (widget._model_name === "HTMLModel") drawn.innerHTML = widget.value;
    else throw new Error(`book/assets/widgets.js cannot draw ${widget._model_name}`);
    place.replaceWith(drawn);
  }
}
