// Loaded on every page. Fetches the widget code when the reader comes near a widget, and not before.
document.addEventListener("DOMContentLoaded", () => {
  const places = [...document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')];
  const root = document.documentElement.dataset.content_root;
  const near = new IntersectionObserver(async (entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    for (const state of document.querySelectorAll("script[data-src]")) // it has a file of its own
      state.textContent = await (await fetch(state.dataset.src)).text();
    document.head.append(Object.assign(document.createElement("script"), { type: "module", src: `${root}_static/widgets.js` }));
  }, { rootMargin: "800px" });
  for (const place of places) near.observe(place.parentElement);

  // The theme and MyST label these with less than they show ("Search", without the keys); their text says it all.
  for (const part of document.querySelectorAll(".search-button-field, details.hide > summary"))
    part.removeAttribute("aria-label");

  // What is wider than the page scrolls by itself: let the keyboard reach it, and fade it where it goes on.
  const wide = document.querySelectorAll("div.math, .bd-article pre, .cell_output > .output, .pst-scrollable-table-container");
  const look = (part) => {
    if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
    part.classList.toggle("goes-on", part.scrollWidth - part.clientWidth - part.scrollLeft > 2);
  };
  const sized = new ResizeObserver((entries) => entries.forEach(({ target }) => look(target)));
  for (const part of wide) {
    sized.observe(part);
    part.addEventListener("scroll", () => look(part), { passive: true });
  }
});

// A link to a place far down: what is above it is laid out late (book.css), so the place may have moved since.
addEventListener("load", () => {
  const again = (times) => requestAnimationFrame(() => {
    const place = document.querySelector(":target");
    if (!place || !times) return;
    place.scrollIntoView();
    again(times - 1);
  });
  again(5);
});

// What is laid out late is laid out all the same when the browser has nothing else to do, a section at a time: then
// nothing moves any more, and each thing is where it seems to be.
addEventListener("load", () => {
  const late = [...document.querySelectorAll(".bd-article > section section")];
  const idle = window.requestIdleCallback ?? ((task) => setTimeout(task, 20));
  const next = () => {
    const section = late.shift();
    if (!section) return;
    section.style.contentVisibility = "visible";
    requestAnimationFrame(() => idle(next));
  };
  idle(next);
});
