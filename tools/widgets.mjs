// Draws a page's ipywidgets from the state that its notebook stored; there is no kernel. Links made with jslink
// and jsdlink live in the browser, so sliders still move things, and the figures of `helpers.explorer` show the
// states that they carry. Jupyter's own html-manager does the former and also carries ipywidgets 7 and the renderers of
// JupyterLab: three times the weight, for nothing used here.
import * as base from "@jupyter-widgets/base";
import { ManagerBase } from "@jupyter-widgets/base-manager";
import * as controls from "@jupyter-widgets/controls";
import "@jupyter-widgets/controls/css/labvariables.css";
import "@jupyter-widgets/controls/css/widgets-base.css";
import { Widget } from "@lumino/widgets";
import "@lumino/widgets/style/index.css";

const MODULES = { "@jupyter-widgets/base": base, "@jupyter-widgets/controls": controls };
const MIME = "application/vnd.jupyter.widget";

class PageManager extends ManagerBase {
  async loadClass(name, module) {
    const found = MODULES[module]?.[name];
    if (!found) throw new Error(`tools/widgets.mjs cannot draw ${name} of ${module}`);
    return found;
  }
  async _create_comm() {
    return { send() {}, close() {}, on_msg() {}, on_close() {} };
  }
  async _get_comm_info() {
    return {};
  }
}

const id = (reference) => reference.replace("IPY_MODEL_", "");
const colab = document.querySelector('a[href^="https://colab.research.google.com/github/"]')?.href;

// Take the stored states out of the figures of an Explorer, and leave what can be offered without a kernel: of each
// control the stored options (not the control, if there is one only), and a note in the place of what needs a kernel.
function prepare(models) {
  const figures = [];
  const display = (model, value) => (models[id(model.layout)].state.display = value);
  for (const { state } of Object.values(models).filter((model) => model.state._dom_classes?.includes("explorer"))) {
    const parts = state.children.map((child) => models[id(child)].state);
    const store = parts.at(-1);
    const figure = JSON.parse(store.value.replace(/^<script[^>]*>|<\/script>$/g, ""));
    store.value = "";
    figure.children = state.children.map(id);
    figure.kept.forEach((kept, i) => {
      parts[i]._options_labels = kept.map((index) => parts[i]._options_labels[index]);
      parts[i].index = kept.indexOf(parts[i].index);
      if (kept.length === 1) display(parts[i], "none");
    });
    for (const part of parts) {
      if (part._dom_classes?.includes("needs-kernel")) display(part, "none");
      if (part._dom_classes?.includes("no-kernel")) {
        display(part, null);
        part.value = part.value.replace("{colab}", colab ? `<a href="${colab}">open this chapter in Colab</a>` : "Jupyter or Colab");
      }
    }
    figures.push(figure);
  }
  return figures;
}

// Let the picture and the words of a figure follow its controls.
async function connect(manager, { kept, frames, shared, children }) {
  const models = await Promise.all(children.map((child) => manager.get_model(child)));
  const [picture, words] = models.slice(-3);
  const inputs = models.slice(0, kept.length);
  for (const input of inputs)
    input.on("change:index", () => {
      const place = inputs.reduce((sum, { attributes }, i) => sum * kept[i].length + attributes.index, 0);
      picture.set("value", frames[place][0].replace(/\{(\d+)\}/g, (_, n) => shared[n]));
      words.set("value", frames[place][1]);
    });
}

// Give names to what would be nameless to a screen reader: slider handles (the label beside them), buttons with an icon.
// A slider says its value as it is printed, not its number in a list, and the words of a figure are read when they change.
function name(host) {
  for (const handle of host.querySelectorAll(".noUi-handle")) {
    const slider = handle.closest(".widget-slider");
    handle.ariaLabel = slider.querySelector(".widget-label")?.textContent || "value";
    handle.ariaValueText = slider.querySelector(".widget-readout")?.textContent || handle.ariaValueText;
  }
  for (const button of host.querySelectorAll("button"))
    if (!button.textContent.trim()) button.ariaLabel = button.title || button.querySelector("i")?.className.replace(/.*fa-/, "");
  for (const words of host.querySelectorAll(".explorer-words")) words.ariaLive = "polite";
}

const scripts = (kind) => document.querySelectorAll(`script[type="${MIME}-${kind}+json"]`);

for (const state of scripts("state")) {
  const manager = new PageManager();
  const stored = JSON.parse(state.textContent);
  const figures = prepare(stored.state);
  await manager.set_state(stored);
  await Promise.all(figures.map((figure) => connect(manager, figure)));
  for (const place of scripts("view")) {
    const model = await manager.get_model(JSON.parse(place.textContent).model_id);
    const view = await manager.create_view(model);
    const host = document.createElement("div");
    host.className = "drawn-widget";
    place.replaceWith(host);
    new MutationObserver(() => name(host)).observe(host, { childList: true, subtree: true }); // parts come one by one
    Widget.attach(view.luminoWidget, host);
  }
}
