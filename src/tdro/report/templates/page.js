"use strict";
// The plan of core/plan.py, from the same numbers. Datasets come sorted by name, so that the first of equals is the first by name.

function keptCount(groups, share) {
  // floor(groups * share) for a share written as a decimal number, in whole numbers: 0.58 * 50 is 29.
  const [whole, decimals = ""] = share.split(".");
  return Number(BigInt(groups) * BigInt(whole + decimals) / 10n ** BigInt(decimals.length));
}

function heated(weights, temperature) {
  // Flatten (above 1) or sharpen (below 1) weights: w^(1/t), to sum 1; relative to the largest, so that none overflows.
  if (temperature === 1) return weights;
  const most = Math.max(...weights);
  const powers = weights.map((w) => Math.pow(w / most, 1 / temperature));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / total);
}

function project(shares, high) {
  // The point below the caps that is closest in KL divergence: min(share * exp(m), high) with sum 1, m by bisection.
  let low = -800, top = 800;
  const clipped = (m) => shares.map((p, g) => Math.min(Math.max(p, 2.2250738585072014e-308) * Math.exp(m), high[g]));
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  for (let k = 0; k < 200; k++) {
    const middle = (low + top) / 2;
    if (sum(clipped(middle)) < 1) low = middle; else top = middle;
  }
  const found = clipped(top);
  const free = found.map((p, g) => p > 0 && p < high[g]);
  const fixed = sum(found.filter((_, g) => !free[g]));
  const moving = sum(found.filter((_, g) => free[g]));
  return found.map((p, g) => Math.min(free[g] ? p * (1 - fixed) / moving : p, high[g]));
}

function makePlan(data, settings) {
  // Return {probabilities, epochs, weights}, one number per dataset, 0 for one that is left out; or {error}.
  const sets = data.datasets, groups = sets.length;
  const weights = heated(sets.map((d) => d.weights[settings.version]), settings.temperature || 1);
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a] || a - b);
  const total = weights.reduce((a, b) => a + b, 0);
  if (!(total > 0)) return {error: "All weights are 0."};
  let probabilities = new Array(groups).fill(0);
  if (settings.plan === "reweight") {
    probabilities = weights.map((w) => w / total);
  } else if (settings.plan === "reweight-loss") {
    const counted = weights.filter((w) => w > 0).length;
    probabilities = weights.map((w) => (w > 0 ? 1 / counted : 0));
  } else {
    const kept = keptCount(groups, settings.share);
    if (kept < 1) return {error: `A share of ${settings.share} keeps none of ${groups} datasets.`};
    const chosen = settings.plan === "bottom-share" ? order.slice(groups - kept) : order.slice(0, kept).filter((g) => weights[g] > 0);
    for (const g of chosen) probabilities[g] = 1 / chosen.length;
  }
  let high = sets.map(() => Number(settings.cap));
  if (settings.max_epochs !== "") {
    const caps = sets.map((d) => Math.min(1, Number(settings.max_epochs) * d.size / data.examples));
    if (caps.reduce((a, b) => a + b, 0) < 1) return {error: `${data.examples} queries need more than ${settings.max_epochs} epochs of all rows.`};
    high = high.map((cap, g) => Math.min(cap, caps[g]));
  }
  if (probabilities.some((p, g) => p > high[g])) {
    if (settings.plan === "reweight-loss") return {error: "Caps act on the sampling, and this plan samples evenly and weighs the loss."};
    const inside = [...probabilities.keys()].filter((g) => probabilities[g] > 0);
    const room = inside.reduce((sum, g) => sum + high[g], 0);
    if (room < 1) return {error: `The caps of the ${inside.length} datasets of the plan sum to ${room.toFixed(3)} only.`};
    const found = project(inside.map((g) => probabilities[g]), inside.map((g) => high[g]));
    inside.forEach((g, k) => { probabilities[g] = found[k]; });
  }
  return {probabilities, weights, epochs: probabilities.map((p, g) => p * data.examples / sets[g].size)};
}

function showControls(data) {
  const form = document.getElementById("what-if-form"), said = document.getElementById("what-if-said");
  const table = document.getElementById("what-if-plan"), body = table.tBodies[0];
  const fields = form.elements, short = (x) => (x === 0 ? "0" : x < 1e-4 ? x.toExponential(1) : x.toFixed(4));
  // A slider has coarse steps: until it is moved, the study's own value holds.
  const moved = {};
  const setting = (name) => (moved[name] ? fields[name].value : data[name]);

  function reset() {
    for (const name of ["share", "cap"]) moved[name] = false;
    for (const name of ["plan", "version", "share", "cap", "max_epochs"]) fields[name].value = data[name];
    fields.temperature.value = 0;
    show();
  }

  function cell(row, text, kind) {
    const one = document.createElement(kind || "td");
    one.textContent = text;
    row.append(one);
    return one;
  }

  function show() {
    const temperature = Math.pow(2, Number(fields.temperature.value));
    const settings = {plan: fields.plan.value, version: fields.version.value, share: setting("share"), cap: setting("cap"),
      max_epochs: fields.max_epochs.value, temperature};
    fields["share-shown"].value = settings.share;
    fields["cap-shown"].value = Number(settings.cap) === 1 ? "no cap" : settings.cap;
    fields["temperature-shown"].value = temperature === 1 ? "1 (as learned)" : `${Number(temperature.toPrecision(3))} (${temperature > 1 ? "flatter" : "sharper"})`;
    fields.share.disabled = !settings.plan.endsWith("share");
    const plan = makePlan(data, settings);
    table.hidden = Boolean(plan.error);
    document.getElementById("what-if-study").hidden = Boolean(plan.error);
    if (plan.error) { said.textContent = plan.error; return; }
    const kept = plan.probabilities.filter((p) => p > 0).length;
    said.textContent = `${kept} of ${data.datasets.length} datasets are sampled; the most repeated one is seen ${Math.max(...plan.epochs).toFixed(2)} times.`;
    const most = Math.max(...plan.probabilities);
    const order = [...plan.probabilities.keys()].sort((a, b) => plan.probabilities[b] - plan.probabilities[a] || plan.weights[b] - plan.weights[a] || a - b);
    body.replaceChildren(...order.map((g) => {
      const row = document.createElement("tr"), p = plan.probabilities[g];
      row.className = p > 0 ? "" : "out";
      cell(row, data.datasets[g].name, "th").scope = "row";
      cell(row, short(plan.weights[g]));
      cell(row, p > 0 ? short(p) : "left out");
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = `${100 * p / most}%`;
      bar.hidden = p === 0;
      const holder = cell(row, "");
      holder.className = "word drawn";
      holder.append(bar);
      cell(row, plan.epochs[g].toFixed(2));
      return row;
    }));
    tell(settings, plan);
  }

  function tell(settings, plan) {
    const own = settings.version === data.version && settings.temperature === 1;
    const lines = ["robust:", `  plan: ${settings.plan}`, `  share: ${settings.share}`, `  cap: ${settings.cap}`,
      `  max_epochs: ${settings.max_epochs || "null"}`, ...(own ? [] : ["  weights: weights.json"])];
    document.getElementById("what-if-yaml").textContent = lines.join("\n");
    const weights = Object.fromEntries(data.datasets.map((d, g) => [d.name, plan.weights[g]]));
    document.getElementById("what-if-weights").textContent = JSON.stringify(weights, null, 1);
  }

  form.addEventListener("input", (event) => { moved[event.target.name] = true; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => { event.preventDefault(); reset(); });
  form.hidden = false;
  reset();
}

if (typeof document !== "undefined") {
  const holder = document.getElementById("what-if-data");
  if (holder) showControls(JSON.parse(holder.textContent));
  addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((one) => { one.open = true; }));
} else {
  module.exports = {makePlan, keptCount};
}
