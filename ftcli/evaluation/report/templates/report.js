"use strict";

// A click on a heading sorts a table by it, another turns it round. Rows that lack a value come last; equal ones stay
// in the order in which they came.
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const read = (row) => Number(row.cells[column].dataset.sort ?? NaN);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [read(a), read(b)];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return falls ? y - x : x - y;
      };
      table.tBodies[0].append(...[...rows].sort(compare));
    });
  });
}

// A picture that is larger than the window can be seen whole.
for (const button of document.querySelectorAll("button.fit")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const fitted = document.getElementById(button.getAttribute("aria-controls")).classList.toggle("fitted");
    button.setAttribute("aria-pressed", fitted);
  });
}

// On paper nothing can be opened.
const closed = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    closed.push(details);
  }
});
addEventListener("afterprint", () => {
  while (closed.length) closed.pop().open = false;
});
