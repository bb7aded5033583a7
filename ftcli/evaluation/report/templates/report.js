"use strict";

// A click on a column header sorts the table, a second click reverses the order. Missing values come last; the sort is
// stable.
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const sortValue = (row) => Number(row.cells[column].dataset.sort ?? NaN);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [sortValue(a), sortValue(b)];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return descending ? y - x : x - y;
      };
      table.tBodies[0].append(...[...rows].sort(compare));
    });
  });
}

// Large plots can be fitted to the page.
for (const button of document.querySelectorAll("button.fit")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const fitted = document.getElementById(button.getAttribute("aria-controls")).classList.toggle("fitted");
    button.setAttribute("aria-pressed", fitted);
  });
}

// Print collapsed sections too.
const collapsed = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    collapsed.push(details);
  }
});
addEventListener("afterprint", () => {
  while (collapsed.length) collapsed.pop().open = false;
});
