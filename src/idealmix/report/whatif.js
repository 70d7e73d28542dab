// The what-if form: native sliders in, a mixture in words, a table and config lines out. All text goes in as text, never
// as markup. If allocation.js does not give the run's own mixtures back to the row, there is no form.
"use strict";
(() => {
  const source = document.getElementById("whatif-data"), place = document.getElementById("whatif-form");
  if (!source || !place) return;
  const data = Allocation.load(JSON.parse(source.textContent)), run = data.settings;
  const find = key => place.querySelector(`[data-key="${key}"]`), all = key => [...place.querySelectorAll(`[data-key="${key}"]`)];
  const whole = x => Math.round(x).toLocaleString("en-US"), percent = x => `${Number((100 * x).toFixed(1))}%`;
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  let at = data.rounds[data.rounds.length - 1], choice = ofRun(at), speaking;

  /** The run's own settings at a measured round. */
  function ofRun(round) {
    return {weights: run.weights.slice(), m: round.m, budget: data.amount, floor: run.floor, cap: run.cap,
      max_repeats: run.max_repeats, gate: run.gate};
  }

  // exact, unless only every stride-th prefix sum is known
  const stride = data.drawn[0].stride, largest = Math.max(...data.rounds.flatMap(r => r.after));
  const off = Math.max(...data.rounds.map(r => {
    try { return Math.max(...Allocation.propose(data, r, ofRun(r)).counts.map((n, i) => Math.abs(n - r.after[i]))); } catch { return Infinity; }
  }));
  if (off > (stride === 1 ? 0 : Math.max(2 * stride, 0.002 * largest))) { document.getElementById("whatif-differs").hidden = false; return; }
  if (stride > 1) document.getElementById("whatif-exact").textContent = `to within some rows (the run's own mixtures come back to within ${whole(off)})`;
  document.getElementById("whatif").hidden = false;

  /** What a slider's value is in words. */
  const told = {
    weight: k => String(choice.weights[k]), m: () => percent(choice.m), budget: () => `${whole(choice.budget)} ${data.unit.replace("_", " ")}`,
    floor: () => percent(choice.floor[0]), cap: () => choice.cap[0] >= 1 ? "none" : percent(choice.cap[0]),
    max_repeats: () => `${choice.max_repeats} ${choice.max_repeats === 1 ? "draw" : "draws"}`,
  };
  const read = {
    weight: (v, k) => { choice.weights[k] = v; }, m: v => { choice.m = v; },
    budget: v => { choice.budget = v === 100 ? data.amount : Math.round(data.amount * v / 100); },
    floor: v => { choice.floor = run.floor.map(() => v); }, cap: v => { choice.cap = run.cap.map(() => v); },
    max_repeats: v => { choice.max_repeats = v; },
  };

  /** Put the choice into the controls. */
  function show() {
    all("weight").forEach((input, k) => { input.value = choice.weights[k]; });
    for (const [key, value] of [["m", choice.m], ["budget", 100 * choice.budget / data.amount], ["floor", choice.floor[0]],
      ["cap", choice.cap[0]], ["max_repeats", choice.max_repeats]]) if (find(key)) find(key).value = value;
    find("gate").checked = choice.gate;
    update();
  }

  function update() {
    for (const input of place.querySelectorAll("input[type=range]")) {
      const text = told[input.dataset.key](Number(input.dataset.at));
      input.closest("label").querySelector("output").textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
    let found = null, sentence;
    try { found = Allocation.propose(data, at, choice); sentence = words(found); } catch (error) { sentence = error.message; }
    const said = document.getElementById("whatif-said");
    said.textContent = sentence;
    said.classList.toggle("worse", !found);
    document.getElementById("whatif-result").hidden = !found;
    clearTimeout(speaking);  // read aloud once the hand rests
    speaking = setTimeout(() => { document.getElementById("whatif-live").textContent = sentence; }, 600);
    if (!found) return;
    rows(found);
    document.getElementById("whatif-lines").textContent = lines(found);
  }

  function words(found) {
    const total = found.volumes.reduce((a, b) => a + b, 0), order = found.volumes.map((_, i) => i).sort((i, j) => found.volumes[j] - found.volumes[i]);
    const parts = order.filter(i => found.counts[i] > 0).slice(0, 6).map(i => `${Math.round(100 * found.volumes[i] / total)}% ${data.domains[i]}`);
    const more = found.counts.filter(n => n > 0).length - parts.length;
    const rowsIn = found.counts.reduce((a, b) => a + b, 0);
    const amount = data.unit === "rows" ? "" : `, ${whole(found.amount)} ${data.unit.replace("_", " ")}`;
    const moved = found.counts.some((n, i) => n !== found.before[i]) ? "" : " Nothing moves.";
    const own = same(choice, ofRun(at)) ? ` This is what the run proposed after round ${at.index}.` : "";
    return `${parts.join(", ")}${more > 0 ? ` and ${more} smaller` : ""}: ${whole(rowsIn)} rows${amount}.${moved}${own}`;
  }

  function rows(found) {
    const body = document.getElementById("whatif-rows"), total = found.volumes.reduce((a, b) => a + b, 0);
    const start = at.counts.map((n, i) => n * data.per_row[i]), all_before = start.reduce((a, b) => a + b, 0);
    const top = Math.max(...found.volumes.map(v => v / total), ...start.map(v => v / all_before));
    body.replaceChildren(...data.domains.map((name, i) => {
      const row = document.createElement("tr"), head = document.createElement("th"), share = total ? found.volumes[i] / total : 0;
      head.scope = "row"; head.textContent = name; head.setAttribute("role", "rowheader"); row.setAttribute("role", "row");
      const bar = document.createElement("span"), was = document.createElement("span");
      bar.className = "share-bar"; bar.style.setProperty("--width", `${100 * share / top}%`);
      was.className = "share-was"; was.style.setProperty("--was", `${100 * start[i] / all_before / top}%`); bar.append(was);
      row.append(head);
      const change = at.counts[i] ? found.counts[i] / at.counts[i] - 1 : 0;
      const cells = [["Rows before", whole(at.counts[i])], ["Rows", whole(found.counts[i])],
        ["Change", change ? `${change > 0 ? "+" : "−"}${percent(Math.abs(change))}` : "0%"], ["Share", percent(share)],
        ["Passes", (found.counts[i] / data.sizes[i]).toFixed(2)],
        ["Why", found.counts[i] === found.before[i] && !found.beta[i] ? `stays: ${found.why[i].replace(/^stays: /, "")}` : found.beta[i] ? found.why[i] : `trades with the movers; ${found.why[i]}`]];
      for (const [label, text] of cells) {
        const cell = document.createElement("td");
        cell.dataset.label = label; cell.setAttribute("role", "cell"); cell.textContent = text;
        if (label === "Rows") cell.dataset.rows = found.counts[i];
        if (label === "Why") cell.className = "text";
        if (label === "Share") cell.append(bar);
        row.append(cell);
      }
      return row;
    }));
  }

  /** A YAML key or string: JSON's quotes unless it is a plain word. */
  const quoted = text => /^[a-z][a-z_-]*$/.test(text) && !/^(true|false|null|yes|no|on|off|y|n)$/.test(text) ? text : JSON.stringify(text);

  /** The keys that differ from the run's, and the mixture as the start. */
  function lines(found) {
    const out = ["# in config.yaml, with another output:"], changed = choice.weights.map((w, q) => [data.references[q], w, run.weights[q]]).filter(x => x[1] !== x[2]);
    if (changed.length) out.push("references:", ...changed.map(([q, w]) => `  ${quoted(q)}: {weight: ${w}}  # beside its path`));
    out.push("allocation:");
    if (choice.m !== data.first_m) out.push(`  m: ${choice.m}`);
    out.push(`  budget: {unit: ${data.unit}, hold: ${data.hold}, size: null}  # the rows of start fix it`);
    for (const key of ["floor", "cap"]) if (!same(choice[key], run[key])) out.push(`  ${key}: ${key === "cap" && choice.cap[0] >= 1 ? "null" : choice[key][0]}`);
    if (choice.max_repeats !== run.max_repeats) out.push(`  max_repeats: ${choice.max_repeats}`);
    if (choice.gate !== run.gate) out.push(`  gate: ${choice.gate}`);
    out.push("  start:", ...data.domains.map((name, i) => `    ${quoted(name)}: ${found.counts[i]}`));
    return out.join("\n");
  }

  place.addEventListener("input", event => {
    const {key, at: k} = event.target.dataset;
    if (read[key]) read[key](Number(event.target.value), Number(k));
    else if (key === "gate") choice.gate = event.target.checked;
    else if (key === "round") { at = data.rounds[event.target.selectedIndex]; choice.m = at.m; find("m").value = at.m; }
    update();
  });
  place.addEventListener("submit", event => event.preventDefault());
  document.getElementById("whatif-reset").addEventListener("click", () => { choice = ofRun(at); show(); });
  document.getElementById("whatif-copy").addEventListener("click", async event => {
    const code = document.getElementById("whatif-lines");
    try { await navigator.clipboard.writeText(code.textContent); event.target.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); event.target.textContent = "Selected: press Ctrl C"; }
    setTimeout(() => { event.target.textContent = "Copy"; }, 2000);
  });
  if (find("round")) find("round").selectedIndex = data.rounds.length - 1;
  show();
})();
