"use strict";
(() => {
  const table = document.querySelector("#cases");
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const order = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
      rows.sort(([a], [b]) => (a === "" || b === "" || !down ? order(a, b) : order(b, a)));
      body.append(...rows.map(([, row]) => row));
    });
  }
  const find = document.querySelector("#find");
  const flagged = document.querySelector("#flagged");
  const shown = document.querySelector("#shown");
  const filter = () => {
    const words = find.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      const fits = row.textContent.toLowerCase().includes(words) && !(flagged.checked && row.dataset.status === "done");
      row.hidden = !fits;
      document.querySelector(row.dataset.section).hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${body.rows.length} shown`;
  };
  find.addEventListener("input", filter);
  flagged.addEventListener("change", filter);
  document.querySelector("#tools").hidden = false;
  const reveal = () => {
    const target = /^#case-\d+$/.test(location.hash) && document.querySelector(location.hash);
    if (target) {
      target.hidden = false;
      target.open = true;
      target.querySelector("summary").focus({ preventScroll: true });
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const section of closed) section.open = true;
  });
  addEventListener("afterprint", () => {
    for (const section of closed) section.open = false;
  });
})();
