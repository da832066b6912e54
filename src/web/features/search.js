// Search: the text that examples come from is searched once as a whole; prefix sums tell which examples have a match.
let plain;
function plainText(index) {
  if (plain) return plain;
  const lower = index.words.map((word) => word.toLowerCase()), parts = new Array(index.text.length);
  const starts = new Uint32Array(index.text.length + 1);
  for (let i = 0; i < parts.length; i++) { parts[i] = lower[index.text[i]]; starts[i + 1] = starts[i] + parts[i].length; }
  return (plain = { text: parts.join(""), starts, lower });
}

// The last i with starts[i] <= at.
function tokenAt(starts, at) {
  let low = 0, high = starts.length - 1;
  while (low < high) { const middle = (low + high + 1) >> 1; if (starts[middle] <= at) low = middle; else high = middle - 1; }
  return low;
}

// hits[i]: matches that begin in the tokens before i.
function matches(index, needle) {
  const { text, starts } = plainText(index), hits = new Uint32Array(index.text.length + 1);
  let token = 0;
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
    if (starts[token + 1] <= at) token = starts[token + 1] + 64 > at ? walk(starts, token, at) : tokenAt(starts, at);
    hits[token + 1]++;
  }
  for (let i = 1; i < hits.length; i++) hits[i] += hits[i - 1];
  return hits;
}
function walk(starts, token, at) { while (starts[token + 1] <= at) token++; return token; }

function search(index, query) {
  const score = new Float64Array(index.n), needle = query.toLowerCase(), labels = index.head.labels;
  if (/^#?\d+$/.test(query)) { const id = Number(query.replace("#", "")); if (id < index.n) score[id] = 1e9; }
  for (const id of Object.keys(labels)) if (labels[id].some((label) => label.text.toLowerCase().includes(needle))) score[id] += 1e6;
  if (needle.length < 2 && needle.charCodeAt(0) < 128) return { score, note: " by number and label" };
  const { lower } = plainText(index), has = new Uint8Array(lower.length);
  for (let i = 1; i < lower.length; i++) {
    const word = lower[i].trim();
    has[i] = word === needle ? 2 : word.includes(needle) ? 1 : 0;
  }
  const width = index.head.promoted;
  for (let id = 0; id < index.n; id++) {
    for (let i = 0; i < width; i++) {
      const own = has[index.promoted[id * width + i]];
      if (own) score[id] += own * 20 / (1 + i);
    }
  }
  let any = count(index, [matches(index, needle)], score, has), note = "";
  const words = needle.split(/\s+/).filter((word) => word);
  if (!any && words.length > 1) {
    any = count(index, words.map((word) => matches(index, word)), score, has);
    if (any) note = " with these words apart";
  }
  return { score, note };
}

// Adds what examples with a match of every kind are worth, more where the peak itself matches.
function count(index, kinds, score, has) {
  let any = false;
  for (let id = 0; id < index.n; id++) {
    for (let i = index.first[id]; i < index.first[id + 1]; i++) {
      const from = index.start[i], to = from + index.length[i];
      if (!kinds.every((hits) => hits[to] > hits[from])) continue;
      any = true;
      const peak = from + index.peak[i];
      const near = kinds.some((hits) => hits[peak + 1] > hits[peak]) || has[index.text[peak]];
      score[id] += (near ? 12 : 2) * (i < index.first[id] + index.top[id] ? 1 : 0.2);
    }
  }
  return any;
}

// Which tokens of an example lie in a match.
function marked(index, from, length, query) {
  const needle = query.toLowerCase(), lower = [];
  if (needle.length < 2) return null;
  for (let i = 0; i < length; i++) lower.push(index.words[index.text[from + i]].toLowerCase());
  const text = lower.join("");
  const needles = text.includes(needle) ? [needle] : needle.split(/\s+/).filter((word) => word.length > 1);
  const marks = new Uint8Array(length);
  for (const word of needles) {
    for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
      let place = 0;
      lower.forEach((part, i) => { if (place < at + word.length && place + part.length > at) marks[i] = 1; place += part.length; });
    }
  }
  return marks;
}
