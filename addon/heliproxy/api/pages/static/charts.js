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
  const FORMATS = { money: MONEY, count: COUNT, ms: MS };

  function stacked(series) {
    const sums = new Array(series[0]?.length ?? 0).fill(0);
    return series.map((values) => values.map((v, i) => (sums[i] += v ?? 0)));
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
      mark.className = `k${(i % 8) + 1}`;
      item.append(mark, one.name);
      if (index != null) { const b = document.createElement("b"); b.textContent = show(value); item.append(b); }
      place.append(item);
    });
  }

  function draw(place) {
    const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
    const note = place.parentElement.querySelector(".legend");
    place.replaceChildren();
    if (!spec.times.length || !spec.series.length) return;
    const bars = spec.kind === "bars";
    const values = bars ? stacked(spec.series.map((s) => s.values)) : spec.series.map((s) => s.values);
    const colours = spec.series.map((_, i) => css(`--c${(i % 8) + 1}`));
    const grid = { stroke: css("--line"), width: 1 };
    const text = { stroke: css("--faint"), font: "11px system-ui", ticks: { show: false } };
    // Bars are drawn from the top of the stack down, each over the one before.
    const order = spec.series.map((_, i) => i);
    if (bars) order.reverse();
    const opts = {
      width: place.clientWidth, height: place.clientHeight, legend: { show: false }, padding: [8, 4, 0, 0],
      cursor: { points: { show: !bars, size: 6 }, drag: { x: true, y: false }, y: false },
      scales: { x: { time: false, range: bars ? (u, min, max) => { const d = u.data[0]; const half = d.length > 1 ? (d[1] - d[0]) / 2 : 1800; return [min - half, max + half]; } : undefined }, y: { range: (u, min, max) => [0, max > 0 ? max * 1.08 : 1] } },
      axes: [
        { ...text, grid: { show: false }, size: 24, space: 70, splits: spec.ticks.length ? () => spec.ticks.map(([t]) => t) : undefined, filter: (u, splits) => { const every = Math.ceil(splits.length / Math.max(1, u.width / 76)); return splits.map((s, i) => (i % every ? null : s)); }, values: (u, splits) => splits.map((s) => (s == null ? null : spec.ticks.find(([t]) => t === s)?.[1] ?? "")) },
        { ...text, grid, size: 54, space: 34, values: (u, splits) => splits.map(AXES[spec.format]) },
      ],
      series: [{}, ...order.map((i) => bars
        ? { fill: colours[i], stroke: colours[i], width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.78, 42], align: 0 }) }
        : { stroke: colours[i], width: 1.6, points: { show: spec.times.length < 3, size: 5, fill: colours[i] }, spanGaps: true })],
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
