"use strict";
(() => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const modes = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("x-positional-theme"); } catch { return null; } };
  let mode = modes.includes(stored()) ? stored() : "system";
  let shown = [...data.labels];
  const theme = () => (mode === "system" ? (dark.matches ? "dark" : "light") : mode);
  const figures = [...document.querySelectorAll("figure[data-chart]")].map((element) => ({
    element,
    plot: element.querySelector(".plot"),
    chart: data.charts[element.dataset.chart],
    result: null,
    due: false,
    drawing: null,
  }));

  const panels = (figure) =>
    figure.chart.panel ? Math.max(1, Math.floor((figure.plot.clientWidth - 56 + 34) / (figure.chart.panel + 34))) : 0;

  function specOf(figure) {
    const spec = structuredClone(figure.chart.spec);
    for (const parameter of spec.params ?? []) if (parameter.name === "shown") parameter.value = [...shown];
    if (figure.chart.panel) spec.columns = figure.columns = panels(figure);
    return spec;
  }

  async function draw(figure) {
    if (figure.drawing) { figure.again = true; return figure.drawing; }
    figure.drawing = (async () => {
      do {
        figure.again = false;
        figure.result?.finalize();
        figure.result = await vegaEmbed(figure.plot, specOf(figure), {
          mode: "vega-lite",
          config: data.themes[theme()],
          renderer: figure.chart.heavy ? "canvas" : "svg",
          actions: { export: true, source: false, compiled: false, editor: false },
          downloadFileName: figure.chart.file,
          tooltip: { theme: "custom" },
          logLevel: 1, // errors alone: a chart without visible series warns of infinite extents
        });
      } while (figure.again);
    })();
    try { await figure.drawing; } finally { figure.drawing = null; }
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const figure = figures.find((one) => one.element === entry.target);
      if (entry.isIntersecting && !figure.due) { figure.due = true; draw(figure); }
    }
  }, { rootMargin: "600px" });

  function swatches() {
    const { colours, shapes, dashes } = data.marks;
    const palette = colours[theme()];
    document.querySelectorAll(".chip").forEach((chip, index) => {
      const colour = palette[index % palette.length];
      const shape = data.marks.paths[shapes[index % shapes.length]];
      chip.querySelector("svg").innerHTML =
        `<line x1="0" y1="7" x2="34" y2="7" stroke="${colour}" stroke-width="2.5" stroke-dasharray="${dashes[index % dashes.length]}"/>` +
        `<path transform="translate(17 7)" fill="${colour}" d="${shape}"/>`;
    });
  }

  function applyTheme() {
    root.dataset.theme = theme();
    document.getElementById("theme").textContent = `Theme: ${mode}`;
    swatches();
    for (const figure of figures) if (figure.due) draw(figure);
  }

  function applyShown() {
    for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", shown.includes(chip.dataset.series));
    for (const element of document.querySelectorAll("main [data-series]")) {
      element.hidden = element.dataset.series !== "" && !shown.includes(element.dataset.series);
    }
    for (const figure of figures) {
      if (figure.result && "shown" in figure.result.view.getState().signals) {
        figure.result.view.signal("shown", [...shown]).runAsync();
      }
    }
  }

  function toggle(label) {
    shown = shown.includes(label) ? shown.filter((one) => one !== label) : data.labels.filter((one) => one === label || shown.includes(one));
    applyShown();
  }

  function sort(header) {
    const table = header.closest("table");
    const index = [...header.parentElement.children].indexOf(header);
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const key = (row) => row.children[index]?.dataset.value ?? row.children[index]?.textContent.trim() ?? "";
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [one, two] = [key(a), key(b)];
      if (one === "" || two === "") return (one === "") - (two === "");
      const difference = Number(one) - Number(two);
      return sign * (Number.isNaN(difference) ? one.localeCompare(two, "en", { numeric: true }) : difference);
    });
    table.tBodies[0].append(...rows);
  }

  document.getElementById("theme").addEventListener("click", () => {
    mode = modes[(modes.indexOf(mode) + 1) % modes.length];
    try { localStorage.setItem("x-positional-theme", mode); } catch { /* a file:// page may have no storage */ }
    applyTheme();
  });
  dark.addEventListener("change", applyTheme);
  for (const chip of document.querySelectorAll(".chip")) chip.addEventListener("click", () => toggle(chip.dataset.series));
  document.querySelector(".all")?.addEventListener("click", () => { shown = [...data.labels]; applyShown(); });
  document.querySelector(".none")?.addEventListener("click", () => { shown = []; applyShown(); });
  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button.closest("th")));

  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    for (const figure of figures) if (figure.due && figure.chart.panel && panels(figure) !== figure.columns) draw(figure);
  });

  applyTheme();
  applyShown();
  for (const figure of figures) {
    if (figure.chart.heavy) watcher.observe(figure.element);
    else { figure.due = true; draw(figure); }
  }
  // The others follow one by one, as printing cannot wait for them.
  window.addEventListener("load", async () => {
    for (const figure of figures) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      if (!figure.due) { figure.due = true; await draw(figure); }
    }
  });
})();
