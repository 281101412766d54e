// Sorting and filtering of the report's tables. Without it they are as they were written, and complete.
"use strict";
document.documentElement.classList.add("scripted");

const STEP = 200; // rows shown at once: a browser lays out a table of thousands in seconds
const MOST_CHOICES = 40;

function sortKey(text) {
  const number = parseFloat(text);
  return Number.isNaN(number) ? null : number;
}

function compare(a, b, numeric) {
  if (!numeric) return a.localeCompare(b, undefined, { numeric: true });
  return sortKey(a) - sortKey(b);
}

function setUp(box) {
  const table = box.querySelector("table");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((element) => {
    const cells = [...element.cells].map((cell) => cell.textContent.trim());
    return { element, cells, text: cells.join(" ").toLowerCase() };
  });
  let shown = rows;
  let order = { column: -1, descending: false };
  let limit = STEP;

  const tools = document.createElement("div");
  tools.className = "tools";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "filter rows by words";
  search.setAttribute("aria-label", "Filter rows by words");
  tools.append(search);

  const choices = [];
  headers.forEach((header, column) => {
    if (!header.hasAttribute("data-choose")) return;
    const values = [...new Set(rows.map((row) => row.cells[column]))];
    if (values.length < 2 || values.length > MOST_CHOICES) return;
    const numeric = values.every((value) => value === "" || sortKey(value) !== null);
    values.sort((a, b) => compare(a, b, numeric));
    const select = document.createElement("select");
    select.add(new Option("all", "*"));
    for (const value of values) select.add(new Option(value === "" ? "(none)" : value, "=" + value));
    select.addEventListener("change", update);
    const label = document.createElement("label");
    label.append(header.textContent.trim(), select);
    tools.append(label);
    choices.push({ column, select });
  });

  const more = document.createElement("button");
  more.type = "button";
  more.addEventListener("click", () => { limit += STEP; draw(); });
  const count = document.createElement("span");
  count.className = "soft count";
  count.setAttribute("role", "status");
  tools.append(count, more);
  box.before(tools);

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = rows.filter((row) => words.every((word) => row.text.includes(word))
      && choices.every(({ column, select }) => select.value === "*" || select.value === "=" + row.cells[column]));
    if (order.column >= 0) {
      const { column, descending } = order;
      const numeric = headers[column].classList.contains("number");
      const empty = (row) => (numeric ? sortKey(row.cells[column]) === null : row.cells[column] === "");
      shown.sort((a, b) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b); // what says nothing stays last
        return (descending ? -1 : 1) * compare(a.cells[column], b.cells[column], numeric);
      });
    }
    limit = STEP;
    draw();
  }

  function draw() {
    body.replaceChildren(...shown.slice(0, limit).map((row) => row.element));
    const hidden = shown.length - Math.min(limit, shown.length);
    count.textContent = `${shown.length} of ${rows.length} rows` + (hidden ? `, ${hidden} more below` : "");
    more.hidden = hidden === 0;
    more.textContent = `show ${Math.min(STEP, hidden)} more`;
  }

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.title = "sort by this column";
    header.append(button);
    button.addEventListener("click", () => {
      order = { column, descending: order.column === column && !order.descending };
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      update();
    });
  });
  search.addEventListener("input", update);
  body.classList.remove("long");
  draw();
}

document.querySelectorAll(".scroll[data-table]").forEach(setUp);
