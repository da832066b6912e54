// Elements, and numbers and tokens for people.
function h(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const grouped = (n) => n.toLocaleString("en-US");
// JSON has null for what is not a number.
const told = (x, text) => (Number.isFinite(x) ? text(x) : "not a number");
const number = (x) => told(x, () => {
  const size = Math.abs(x);
  const text = size === 0 ? "0" : size >= 100 ? x.toFixed(0) : size >= 10 ? x.toFixed(1) : size >= 0.1 ? x.toFixed(2) : x.toPrecision(2);
  return text.replace("-", "−");
});
const percent = (share) => told(share, () => {
  const p = 100 * share;
  return (p === 0 ? "0" : p >= 10 ? p.toFixed(0) : p >= 1 ? p.toFixed(1) : p >= 0.01 ? p.toFixed(2) : p.toPrecision(1)) + " %";
});
const two = (x) => told(x, () => x.toFixed(2).replace("-", "−"));
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍").replaceAll(" ", "·");
const token = (text) => h("span", { class: "tok" }, visible(text).replace(/^·(?=.)/, " "));
