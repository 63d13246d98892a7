// Fits the flame graph to the window; a click zooms, Escape goes back; the search box finds names.
(function () {
  "use strict";
  const svg = document.documentElement;
  const details = document.getElementById("details");
  const search = document.getElementById("search");
  const CHARACTER = 7.25, MARGIN = 10, TEXT_MARGIN = 4, NARROWEST = 3;
  const frames = Array.from(document.querySelectorAll(".frame"), (element) => ({
    element,
    rect: element.querySelector("rect"),
    text: element.querySelector("text"),
    title: element.querySelector("title").textContent,
    name: element.dataset.name,
    x: Number(element.dataset.x),
    width: Number(element.dataset.width),
    depth: Number(element.dataset.depth),
  }));
  const all = frames[0];
  let zoomed = all;

  function fitted(name, width) {
    const room = Math.floor((width - 2 * TEXT_MARGIN) / CHARACTER);
    if (room < NARROWEST) return "";
    return name.length <= room ? name : name.slice(0, room - 1) + "…";
  }

  function show() {
    const whole = Math.max(Math.floor(window.visualViewport.width), 400);
    const scale = (whole - 2 * MARGIN) / zoomed.width;
    const end = zoomed.x + zoomed.width;
    svg.setAttribute("width", whole);
    for (const frame of frames) {
      const above = frame.depth < zoomed.depth
        && frame.x <= zoomed.x && frame.x + frame.width >= end;
      const left = above ? zoomed.x : frame.x;
      const width = (above ? zoomed.width : frame.width) * scale;
      const inside = frame.x >= zoomed.x && frame.x + frame.width <= end
        && frame.depth >= zoomed.depth;
      const shown = above || (inside && width >= 0.2);
      frame.element.classList.toggle("hidden", !shown);
      frame.element.classList.toggle("above", above);
      if (!shown) continue;
      const x = MARGIN + (left - zoomed.x) * scale;
      frame.rect.setAttribute("x", x);
      frame.rect.setAttribute("width", width);
      frame.text.setAttribute("x", x + TEXT_MARGIN);
      frame.text.textContent = fitted(frame.name, width);
    }
  }

  function zoom(frame) {
    zoomed = frame;
    show();
  }

  function find() {
    const wanted = search.value.toLowerCase();
    let end = 0, sum = 0;
    // callers come before what they call: what is inside a match is not counted again
    for (const frame of frames) {
      const match = wanted !== "" && frame !== all && frame.name.toLowerCase().includes(wanted);
      frame.element.classList.toggle("match", match);
      if (match && frame.x + frame.width > end + 1e-12) {
        sum += frame.width;
        end = frame.x + frame.width;
      }
    }
    svg.classList.toggle("searching", wanted !== "");
    details.textContent = wanted === "" ? "" : (100 * sum).toFixed(1) + " % in what matches";
  }

  for (const frame of frames) {
    frame.element.addEventListener("click", () => zoom(frame));
    frame.element.addEventListener("mouseenter", () => {
      details.textContent = frame.title.split("\n").join("   ");
    });
    frame.element.addEventListener("mouseleave", find);
  }
  search.addEventListener("input", find);
  window.addEventListener("keydown", (event) => { if (event.key === "Escape") zoom(all); });
  window.addEventListener("resize", show);
  document.getElementById("search-box").classList.remove("hidden");
  show();
})();
