// What the page adds where scripts run: exact figures under the pointer and for the keyboard, the grid of layers, and the
// rounds one after the other. All text goes in as text, never as markup.
"use strict";

// --- exact figures: elements with data-tip; a figure takes the focus, arrow keys go through its parts ------------------
(() => {
  const tip = document.createElement("div"), live = document.createElement("p");
  tip.className = "tip"; tip.hidden = true; tip.setAttribute("aria-hidden", "true");
  live.className = "hidden"; live.setAttribute("role", "status");
  document.body.append(tip, live);
  const at = new WeakMap();
  const show = (part, aloud) => {
    const box = part.getBoundingClientRect();
    tip.textContent = part.dataset.tip; tip.hidden = false;
    const half = tip.offsetWidth / 2, middle = box.left + box.width / 2;
    tip.style.left = `${scrollX + Math.min(Math.max(middle - half, 8), innerWidth - 2 * half - 8)}px`;
    tip.style.top = `${scrollY + box.top - tip.offsetHeight - 8}px`;
    for (const old of document.querySelectorAll(".pointed")) old.classList.remove("pointed");
    part.classList.add("pointed");
    if (aloud) live.textContent = part.dataset.tip;
  };
  const hide = () => { tip.hidden = true; for (const old of document.querySelectorAll(".pointed")) old.classList.remove("pointed"); };
  document.addEventListener("pointerover", event => {
    const part = event.target.closest?.("[data-tip]");
    if (part) show(part); else hide();
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") hide();
    const figure = event.target.closest?.("svg.tips"), step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!figure || !step) return;
    const parts = [...figure.querySelectorAll("[data-tip]")], next = ((at.get(figure) ?? (step > 0 ? -1 : 0)) + step + parts.length) % parts.length;
    at.set(figure, next); show(parts[next], true); event.preventDefault();
  });
  window.markTips = () => {
    for (const figure of document.querySelectorAll("svg")) {
      if (!figure.querySelector("[data-tip]") || figure.classList.contains("tips")) continue;
      figure.classList.add("tips"); figure.setAttribute("tabindex", "0"); figure.setAttribute("role", "group");
      figure.setAttribute("aria-label", `${figure.getAttribute("aria-label")}. Arrow keys: exact figures`);
    }
  };
  window.markTips();
})();

// --- the grid of layers -------------------------------------------------------------------------------------------------
(() => {
  const source = document.getElementById("layers-data"), place = document.getElementById("layers");
  if (!source || !place) return;
  const data = JSON.parse(source.textContent), on = document.getElementById("layers-on"), of = document.getElementById("layers-of");
  const grid = document.getElementById("layers-grid"), said = document.getElementById("layers-said"), NS = "http://www.w3.org/2000/svg";
  const number = v => v === null ? "–" : v.toPrecision(3).replace("-", "−");
  place.hidden = false;

  function values() {
    const i = of.selectedIndex, q = on.selectedIndex - 1;  // the first is the objective, the last may be damping
    if (on.value === "damping") return data.layers.map(layer => layer.damping);
    if (q < 0) return data.layers.map(layer => layer.alpha.reduce((total, row, k) => total + data.share[k] * (row[i] ?? 0), 0));
    return data.layers.map(layer => layer.alpha[q][i]);
  }

  function draw() {
    const damping = on.value === "damping", shown = values(), sizes = shown.filter(v => v !== null && v !== 0).map(Math.abs);
    of.disabled = damping;
    const top = Math.max(...sizes, 0), low = Math.log(Math.min(...sizes)), span = Math.log(top) - low || 1;
    const level = v => v === null || v === 0 ? "" : damping ? `scale-${1 + Math.min(3, Math.floor(4 * (Math.log(v) - low) / span))}`
      : `${v < 0 ? "help" : "hurt"}-${Math.min(4, Math.max(1, Math.ceil(4 * Math.abs(v) / top)))}`;
    grid.replaceChildren(...data.kinds.map((kind, row) => {
      const item = document.createElement("li"), name = document.createElement("span"), svg = document.createElementNS(NS, "svg");
      name.textContent = kind; name.className = "name";
      svg.setAttribute("viewBox", `0 0 ${data.depths} 1`); svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("class", "strip"); svg.setAttribute("aria-label", `${kind}, by depth`);
      data.layers.forEach((layer, k) => {
        if (layer.at[0] !== row) return;
        const cell = document.createElementNS(NS, "rect");
        for (const [key, value] of Object.entries({x: layer.at[1], width: 1, height: 1, class: level(shown[k]) || "flat"})) cell.setAttribute(key, value);
        cell.dataset.tip = `${layer.name}: ${number(shown[k])}`;
        svg.append(cell);
      });
      item.append(name, svg);
      return item;
    }));
    const total = shown.reduce((a, b) => a + (b ?? 0), 0);
    said.textContent = damping ? `Damping that was added to each layer's eigenvalues, on a logarithmic scale from ${number(Math.exp(low))} to ${number(top)}. Influence at another damping was not measured.`
      : `The parts sum to ${number(total)}. No errors are known for the parts.`;
    window.markTips();
  }
  place.addEventListener("change", draw);
  draw();
})();

// --- the rounds one after the other -------------------------------------------------------------------------------------
(() => {
  const source = document.getElementById("rounds-data"), place = document.getElementById("rounds");
  if (!source || !place) return;
  const data = JSON.parse(source.textContent), slider = document.getElementById("rounds-at"), play = document.getElementById("rounds-play");
  const bars = [...place.querySelectorAll(".bar-now")], shares = [...place.querySelectorAll(".share strong")], said = document.getElementById("rounds-said");
  const top = Math.max(...data.flatMap(r => r.shares)) || 1;
  let timer = null;
  place.hidden = false;
  function show(k) {
    slider.value = k;
    slider.setAttribute("aria-valuetext", data[k].label);
    data[k].shares.forEach((share, i) => { bars[i].style.transform = `scaleX(${share / top})`; shares[i].textContent = data[k].percents[i]; });
    said.textContent = data[k].said;
  }
  function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    let k = Number(slider.value) === data.length - 1 ? 0 : Number(slider.value);
    show(k); play.textContent = "Stop";
    timer = setInterval(() => { k += 1; show(k); if (k === data.length - 1) stop(); }, 1400);
  });
  show(data.length - 1);
})();
