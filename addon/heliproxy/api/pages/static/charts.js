// Plots, drawn by uPlot from the JSON the page carries. Colours come from the style sheet.
"use strict";

(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plots = new Set();
  const MONEY = (v) => v == null ? "–" : v === 0 ? "$0" : Math.abs(v) >= 1000 ? `$${Math.round(v).toLocaleString("en")}` : Math.abs(v) >= 1 ? `$${v.toFixed(2)}` : Math.abs(v) >= 0.01 ? `$${v.toFixed(4)}` : `$${Number(v.toPrecision(3))}`;
  const COUNT = (v) => v == null ? "–" : v >= 1e6 ? `${(v / 1e6).toFixed(v >= 1e7 ? 0 : 1)}M` : v >= 1e4 ? `${(v / 1e3).toFixed(v >= 1e5 ? 0 : 1)}k` : `${Number(v.toFixed(2)).toLocaleString("en")}`;
  const MS = (v) => v == null ? "–" : v >= 60000 ? `${(v / 60000).toFixed(1)} min` : v >= 1000 ? `${(v / 1000).toFixed(v >= 10000 ? 0 : 1)} s` : `${Math.round(v)} ms`;
  // Axes have round numbers: no more digits than it takes to tell them apart.
  const AXES = { money: (v) => v === 0 ? "$0" : Math.abs(v) >= 1000 ? `$${COUNT(v)}` : `$${Number(v.toPrecision(6))}`, count: COUNT, ms: MS };
  const WHOLE = Array.from({ length: 14 }, (_, n) => [1, 2, 5].map((m) => m * 10 ** n)).flat();
  const FORMATS = { money: MONEY, count: COUNT, ms: MS };

  function stacked(series) {
    const sums = new Array(series[0]?.length ?? 0).fill(0);
    return series.map((values) => values.map((v, i) => (sums[i] += v ?? 0)));
  }

  // A series keeps its colour in every plot of a page, whatever others a plot leaves out.
  const colour = (one, i) => ((one.colour ?? i) % 8) + 1;

  // The steps that get a label, as many as fit. Hours go by divisors of a day, so that midnight is always among them.
  function labelled(ticks, width) {
    const most = Math.max(1, Math.floor(width / 72));
    const least = Math.ceil(ticks.length / most);
    if (ticks[0]?.length < 4) return ticks.filter((_, i) => i % least === 0);
    const every = [1, 2, 3, 4, 6, 8, 12, 24].find((n) => n >= least);
    if (every) return ticks.filter((tick) => tick[2] % every === 0);
    return ticks.filter((tick) => tick[2] === 0).filter((_, i) => i % Math.ceil(least / 24) === 0);
  }

  // Labels by step: hours with their day below, wherever a new day begins.
  function labels(ticks) {
    let day = null;
    return new Map(ticks.map(([at, text, , date]) => {
      const shown = date && date !== day ? `${text}\n${date}` : text;
      day = date;
      return [at, shown];
    }));
  }

  function legend(place, spec, index) {
    const show = FORMATS[spec.format];
    place.replaceChildren();
    const when = document.createElement("span");
    when.textContent = index == null ? "" : spec.labels[index];
    if (index != null) place.append(when);
    spec.series.forEach((one, i) => {
      const value = index == null ? null : one.values[index];
      if (index != null && !value) return;
      const item = document.createElement("span");
      const mark = document.createElement("i");
      mark.className = `k${colour(one, i)}`;
      item.append(mark, one.name);
      if (index != null) { const b = document.createElement("b"); b.textContent = show(value); item.append(b); }
      place.append(item);
    });
  }

  // Room for an axis' longest label: money of a few micro-dollars takes more than counts do.
  const wide = (u, labels) => 12 + Math.max(42, 7 * Math.max(0, ...(labels ?? []).map((one) => one.length)));

  // A few values far apart make no line that could be seen: they are drawn as points too.
  const sparse = (values) => values.reduce((n, v) => n + (v != null), 0) < 4;

  function draw(place) {
    const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
    const note = place.parentElement.querySelector(".legend");
    place.replaceChildren();
    place.classList.remove("none");
    if (!spec.series.some((one) => one.values.some((v) => v != null))) {
      note.replaceChildren();
      place.textContent = "Nothing in this time.";
      place.classList.add("none");
      return;
    }
    const bars = spec.kind === "bars";
    const values = bars ? stacked(spec.series.map((s) => s.values)) : spec.series.map((s) => s.values);
    const colours = spec.series.map((one, i) => css(`--c${colour(one, i)}`));
    const shown = labels(labelled(spec.ticks, place.clientWidth - 60));
    const grid = { stroke: css("--line"), width: 1 };
    const text = { stroke: css("--faint"), font: "11px system-ui", ticks: { show: false } };
    // Bars are drawn from the top of the stack down, each over the one before.
    const order = spec.series.map((_, i) => i);
    if (bars) order.reverse();
    const opts = {
      width: place.clientWidth, height: place.clientHeight, legend: { show: false }, padding: [8, 8, 0, 0],
      cursor: { points: { show: !bars, size: 6 }, drag: { x: true, y: false }, y: false },
      scales: { x: { time: false, range: (u, min, max) => [min - 0.5, max + 0.5] }, y: { range: (u, min, max) => [0, max > 0 ? max * 1.08 : 1] } },
      axes: [
        { ...text, grid: { show: false }, size: spec.ticks[0]?.length > 3 ? 38 : 24, splits: () => [...shown.keys()], filter: (u, splits) => splits, values: (u, splits) => splits.map((s) => shown.get(s)) },
        { ...text, grid, size: wide, space: 34, ...(spec.format === "count" && { incrs: WHOLE }), values: (u, splits) => splits.map(AXES[spec.format]) },
      ],
      series: [{}, ...order.map((i) => bars
        ? { fill: colours[i], stroke: colours[i], width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.78, 42], align: 0 }) }
        : { stroke: colours[i], width: 1.6, points: { show: sparse(values[i]), size: 6, fill: colours[i] }, spanGaps: true })],
      hooks: {
        setCursor: [(u) => legend(note, spec, u.cursor.idx ?? null)],
        setSelect: [(u) => zoom(u, spec)],
      },
    };
    const plot = new uPlot(opts, [spec.times, ...order.map((i) => values[i])], place);
    plots.add(plot);
    legend(note, spec, null);
  }

  function zoom(u, spec) {
    if (!spec.zoom || u.select.width < 8) return;
    const from = u.posToIdx(u.select.left);
    const to = Math.min(spec.starts.length - 1, u.posToIdx(u.select.left + u.select.width) + 1);
    const url = new URL(location.href);
    url.searchParams.delete("range");
    url.searchParams.set("since", spec.starts[from]);
    if (to > from) url.searchParams.set("until", spec.starts[to]); 
    location.href = url;
  }

  function all() {
    for (const plot of plots) plot.destroy();
    plots.clear();
    for (const place of document.querySelectorAll("[data-chart]")) draw(place);
  }

  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(all, 150); });
  document.addEventListener("theme", all);
  document.addEventListener("refreshed", all);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  all();
})();
