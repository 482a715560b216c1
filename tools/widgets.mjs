// Draws a page's ipywidgets from the state that its notebook stored; there is no kernel. Links made with jslink
// and jsdlink live in the browser, so sliders still move things. Jupyter's own html-manager does the same and
// also carries ipywidgets 7 and the renderers of JupyterLab: three times the weight, for nothing used here.
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

// Give names to what would be nameless to a screen reader: slider handles (the label beside them), buttons with an icon.
function name(host) {
  for (const handle of host.querySelectorAll(".noUi-handle"))
    handle.ariaLabel = handle.closest(".jupyter-widgets").querySelector(".widget-label")?.textContent || "value";
  for (const button of host.querySelectorAll("button"))
    if (!button.textContent.trim()) button.ariaLabel = button.title || button.querySelector("i")?.className.replace(/.*fa-/, "");
}

const scripts = (kind) => document.querySelectorAll(`script[type="${MIME}-${kind}+json"]`);

for (const state of scripts("state")) {
  const manager = new PageManager();
  await manager.set_state(JSON.parse(state.textContent));
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
