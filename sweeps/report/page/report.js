// Sorting, filtering and columns of the report's tables, kept in the page's address. Without it they are as they were
// written: complete, but for those of thousands of rows, which begin with the first.
"use strict";
document.documentElement.classList.add("scripted");

const STEP = 200; // rows shown at once: a browser lays out a table of thousands in seconds
const MOST_CHOICES = 40;
const WIDEST = 1100; // pixels of a table whose columns nobody chose
const NARROW = 640;

function sortKey(text) {
  const number = parseFloat(text);
  return Number.isNaN(number) ? null : number;
}

function compare(a, b, numeric) {
  if (!numeric) return a.localeCompare(b, undefined, { numeric: true });
  return sortKey(a) - sortKey(b);
}

// The address is #PLACE&TABLE.q=WORDS&TABLE.sort=-COLUMN&TABLE.columns=A|B&TABLE.is.COLUMN=VALUE, each part where needed.
const address = {
  read() {
    const [place, ...rest] = location.hash.slice(1).split("&");
    return place.includes("=") ? ["", new URLSearchParams(location.hash.slice(1))] : [place, new URLSearchParams(rest.join("&"))];
  },
  write(place) {
    const said = new URLSearchParams();
    for (const table of tables) for (const [key, value] of table.state()) said.append(`${table.key}.${key}`, value);
    const hash = [place, said.toString()].filter(Boolean).join("&");
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  },
};
const tables = [];

// The rows of long tables (long_tables.py): texts, and elements once they are shown.
async function unpacked() {
  const store = document.getElementById("rows");
  const bytes = Uint8Array.from(atob(store.content.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

function longRows({ columns, links, best }, folders, headers) {
  const texts = columns.map(({ values, places }) => (places ? places.map((place) => values[place]) : values));
  const bold = best.map((places) => new Set(places));
  return texts[0].map((_, place) => ({
    cells: texts.map((column) => column[place]),
    get element() {
      const line = document.createElement("tr");
      this.cells.forEach((text, column) => {
        const cell = line.insertCell();
        cell.className = headers[column].className;
        if (["pass", "met"].includes(text)) cell.classList.add("pass");
        if (text === "missed" || text.startsWith("FAIL")) cell.classList.add("fail");
        if (bold[column].has(place)) cell.classList.add("best");
        if (column > 0) return cell.append(text);
        const named = links[place] >= 0 ? cell.appendChild(document.createElement("a")) : cell;
        if (named !== cell) named.href = folders[links[place]];
        text.split("_").forEach((part, at) => named.append(...(at ? ["_", document.createElement("wbr")] : []), part));
      });
      Object.defineProperty(this, "element", { value: line });
      return line;
    },
  }));
}

function setUp(box, long) {
  const key = box.dataset.table + (tables.some((other) => other.key === box.dataset.table) ? `~${tables.length}` : "");
  const table = box.querySelector("table");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const names = headers.map((header) => header.textContent.trim());
  const packed = long?.tables[box.dataset.rows];
  const rows = packed ? longRows(packed, long.folders, headers)
    : [...body.rows].map((element) => ({ element, cells: [...element.cells].map((cell) => cell.textContent.trim()) }));
  if (packed) box.parentNode.querySelector(".rest").remove();
  let shown = rows;
  let order = { column: -1, descending: false };
  let limit = STEP;
  let chosen = null; // the columns that the reader chose; null: as many as fit

  const tools = document.createElement("div");
  tools.className = "tools";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "filter rows by words";
  search.setAttribute("aria-label", "Filter rows by words");

  const filters = document.createElement("details");
  filters.className = "filters";
  filters.open = document.documentElement.clientWidth >= NARROW;
  const filtersTitle = document.createElement("summary");
  filtersTitle.textContent = "Filters";
  filters.append(filtersTitle);
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
    select.addEventListener("change", changed);
    const label = document.createElement("label");
    label.append(names[column], select);
    filters.append(label);
    choices.push({ column, select });
  });

  const picker = document.createElement("details");
  picker.className = "columns";
  const pickerTitle = document.createElement("summary");
  picker.append(pickerTitle);
  const boxes = names.map((name, column) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "checkbox";
    input.disabled = column === 0;
    input.addEventListener("change", () => {
      chosen = new Set(boxes.flatMap((each, place) => (each.checked ? [place] : [])));
      showColumns();
      address.write(address.read()[0]);
    });
    label.append(input, name);
    picker.append(label);
    return input;
  });
  for (const [text, all] of [["all", true], ["as many as fit", false]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      chosen = all ? new Set(names.keys()) : null;
      showColumns();
      address.write(address.read()[0]);
    });
    picker.append(button);
  }
  const hiding = document.createElement("style");
  document.head.append(hiding);

  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  more.addEventListener("click", () => { limit += STEP; draw(); });
  const count = document.createElement("span");
  count.className = "soft count";
  count.setAttribute("role", "status");
  tools.append(search, ...(choices.length ? [filters] : []), picker, count, more);
  box.before(tools);
  box.dataset.key = key;

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = rows.filter((row) => words.every((word) => (row.text ??= row.cells.join(" ").toLowerCase()).includes(word))
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
    headers.forEach((header, column) => {
      if (column !== order.column) header.removeAttribute("aria-sort");
      else header.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    });
    limit = STEP;
    draw();
  }

  function changed() {
    update();
    address.write(address.read()[0]);
  }

  function draw() {
    body.replaceChildren(...shown.slice(0, limit).map((row) => row.element));
    const hidden = shown.length - Math.min(limit, shown.length);
    count.textContent = `${shown.length} of ${rows.length} rows` + (hidden ? `, ${hidden} more below` : "");
    more.hidden = hidden === 0;
    more.textContent = `show ${Math.min(STEP, hidden)} more`;
  }

  // The first column and the main number always, then the others in their order until one does not fit.
  function fitting() {
    hiding.textContent = "";
    if (!box.clientWidth) return null; // inside of closed details
    table.style.width = "max-content";
    const widths = headers.map((header) => header.getBoundingClientRect().width);
    table.style.width = "";
    const main = headers.findIndex((header) => header.hasAttribute("data-main"));
    const first = main > 0 ? [0, main] : [0];
    let left = Math.min(box.clientWidth, WIDEST);
    const found = new Set();
    for (const column of [...first, ...names.keys()]) {
      if (found.has(column)) continue;
      left -= widths[column];
      if (left < 0 && !first.includes(column)) break;
      found.add(column);
    }
    return found;
  }

  function showColumns() {
    const visible = chosen ?? fitting() ?? new Set(names.keys());
    const hidden = [...names.keys()].filter((column) => !visible.has(column));
    const cells = hidden.map((column) => `[data-key="${CSS.escape(key)}"] tr > :nth-child(${column + 1})`);
    hiding.textContent = cells.length ? `${cells.join(",")} { display: none; }` : "";
    boxes.forEach((input, column) => { input.checked = visible.has(column); });
    pickerTitle.textContent = hidden.length ? `Columns: ${visible.size} of ${names.length}` : "Columns";
  }

  function* state() {
    if (search.value) yield ["q", search.value];
    if (order.column >= 0) yield ["sort", (order.descending ? "-" : "") + names[order.column]];
    if (chosen) yield ["columns", [...chosen].sort((a, b) => a - b).map((column) => names[column]).join("|")];
    for (const { column, select } of choices) if (select.value !== "*") yield [`is.${names[column]}`, select.value.slice(1)];
  }

  function restore(said) {
    search.value = said.get(`${key}.q`) ?? "";
    const sort = said.get(`${key}.sort`) ?? "";
    const descending = sort.startsWith("-") && !names.includes(sort);
    order = { column: names.indexOf(descending ? sort.slice(1) : sort), descending };
    const columns = said.get(`${key}.columns`);
    chosen = columns === null ? null : new Set([0, ...columns.split("|").map((name) => names.indexOf(name)).filter((at) => at >= 0)]);
    for (const { column, select } of choices) {
      const value = said.get(`${key}.is.${names[column]}`);
      const known = value !== null && [...select.options].some((option) => option.value === "=" + value);
      select.value = known ? "=" + value : "*";
    }
    update();
    showColumns();
  }

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.title = "sort by this column";
    header.append(button);
    button.addEventListener("click", () => {
      order = { column, descending: order.column === column && !order.descending };
      changed();
    });
  });
  search.addEventListener("input", changed);
  box.closest("details")?.addEventListener("toggle", () => { if (!chosen) showColumns(); });
  addEventListener("resize", () => { if (!chosen) showColumns(); });
  body.classList.remove("long");
  tables.push({ key, state, restore });
}

function fromAddress() {
  const [place, said] = address.read();
  for (const table of tables) table.restore(said);
  if (place) document.getElementById(place)?.scrollIntoView();
}
function setUpAll(long) {
  document.querySelectorAll(".scroll[data-table]").forEach((box) => setUp(box, long));
  fromAddress();
}
if (document.getElementById("rows")) unpacked().then(setUpAll, () => setUpAll(null));
else setUpAll(null);
// A link of the contents leaves only its place in the address: what the tables show is put back behind it.
addEventListener("hashchange", () => {
  const [place, said] = address.read();
  if ([...said.keys()].length || !place) fromAddress();
  else address.write(place);
});
