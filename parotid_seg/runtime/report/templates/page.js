"use strict";
(() => {
  const table = document.querySelector("#cases");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const names = new Intl.Collator(undefined, { numeric: true });
  const order = (column, down) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
    if (x === "" || y === "") return (x === "") - (y === "");
    return (down ? -1 : 1) * (heads[column].classList.contains("number") ? x - y : names.compare(x, y));
  };
  const by = document.querySelector("#sort");
  const turn = document.querySelector("#turn");
  const rises = (column) => heads[column].getAttribute("aria-sort") === "ascending";
  const sort = (column, down) => {
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    by.selectedIndex = column;
    turn.textContent = down ? "\u2193 falling" : "\u2191 rising";
    body.append(...[...body.rows].sort(order(column, down)));
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sort(column, rises(column)));
  });
  by.addEventListener("change", () => sort(by.selectedIndex, false));
  turn.addEventListener("click", () => sort(by.selectedIndex, rises(by.selectedIndex)));
  const find = document.querySelector("#find");
  const flagged = document.querySelector("#flagged");
  const shown = document.querySelector("#shown");
  const filter = () => {
    const words = find.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      const fits = row.textContent.toLowerCase().includes(words) && !(flagged.checked && ["done", "unknown"].includes(row.dataset.status));
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
