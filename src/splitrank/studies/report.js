// Draws the charts. The numbers come from the page's JSON as they were recorded, the colours from its style sheet,
// so that one function draws for light and dark, and for the runs that are shown.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const hiddenLines = new Set();
  const patterns = ["", "/", "x", ".", "-", "+"];

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
      return { ...result, fillcolor: `${colour}30`, line: { width: 1, color: `${colour}30` } };
    }
    if (kind === "bar") {
      const pattern = { shape: patterns[part % patterns.length], bgcolor: look.card, fgcolor: colour, fillmode: "replace" };
      pattern.size = 7;
      return { ...result, marker: { color: colour, pattern, line: { color: colour, width: 1 } } };
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
        rangemode: chart.from_zero ? "tozero" : "normal", ...(chart.is_stacked ? { minallowed: 0 } : {}),
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

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const line = Number(button.dataset.line);
      if (!hiddenLines.delete(line)) hiddenLines.add(line);
      button.setAttribute("aria-pressed", String(!hiddenLines.has(line)));
      draw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
