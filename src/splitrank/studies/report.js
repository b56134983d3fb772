// Draws the charts. The numbers come from the page's JSON as they were recorded, the colours from its style sheet,
// so that one function draws for light and dark, and for the runs that are shown.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const hiddenLines = new Set();
  const patterns = ["", "/", "x", ".", "|", "-"];

  function currentLook() {
    const css = getComputedStyle(document.documentElement);
    const read = (name) => css.getPropertyValue(name).trim();
    return {
      text: read("--text"), muted: read("--muted"), grid: read("--grid"), card: read("--card"),
      lines: Array.from({ length: report.num_colours }, (_, index) => read(`--line-${index}`)),
      font: getComputedStyle(document.body).fontFamily,
    };
  }

  function styled(trace, look) {
    const { line, colour: index, kind, part } = trace.meta;
    const colour = index === null ? look.muted : look.lines[index];
    const result = { ...trace, visible: !hiddenLines.has(line), hoverlabel: { bordercolor: colour } };
    if (kind === "band") {
      const pale = `${colour}${report.is_crowded ? "18" : "30"}`;
      return { ...result, fillcolor: pale, line: { width: 1, color: pale } };
    }
    if (kind === "bar") {
      const pattern = { shape: patterns[part], bgcolor: look.card, fgcolor: colour, fillmode: "replace" };
      pattern.size = 7;
      return { ...result, marker: { color: colour, pattern, line: { color: colour, width: trace.y.map((height) => (height ? 1 : 0)) } } };
    }
    return { ...result, line: { ...trace.line, color: colour }, marker: { ...trace.marker, color: colour } };
  }

  function layout(chart, look) {
    const axis = { gridcolor: look.grid, linecolor: look.grid, zerolinecolor: look.grid, automargin: true };
    return {
      font: { family: look.font, size: 13, color: look.text },
      paper_bgcolor: look.card, plot_bgcolor: look.card,
      margin: { l: 48, r: 12, t: 30, b: 44 },
      xaxis: { ...axis, title: { text: "round" }, range: report.round_range, dtick: report.round_step, zeroline: false },
      yaxis: {
        ...axis, title: { text: chart.axis }, tickformat: chart.tick_format,
        rangemode: chart.from_zero ? "tozero" : "normal", ...(chart.step === null ? {} : { dtick: chart.step }),
      },
      barmode: "stack", bargap: 0.25,
      hovermode: "closest", hoverlabel: { align: "left", bgcolor: look.card, font: { color: look.text } },
      showlegend: false,
      // A finger that moves over a chart scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      uirevision: "keep",
    };
  }

  const config = {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };

  function draw() {
    const look = currentLook();
    for (const chart of report.charts) {
      const traces = chart.traces.map((trace) => styled(trace, look));
      Plotly.react(`chart-${chart.key}`, traces, layout(chart, look), config);
    }
  }

  const buttons = Array.from(document.querySelectorAll(".legend [data-line]"));

  function show(button, isShown) {
    const line = Number(button.dataset.line);
    if (isShown) hiddenLines.delete(line);
    else hiddenLines.add(line);
    button.setAttribute("aria-pressed", String(isShown));
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      show(button, hiddenLines.has(Number(button.dataset.line)));
      draw();
    });
  }
  document.querySelector(".legend .all")?.addEventListener("click", () => {
    const isShown = hiddenLines.size > 0;
    for (const button of buttons) show(button, isShown);
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
