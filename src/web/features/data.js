// Columns of all features, and where their examples lie in the text.
async function loadIndex() {
  const [head, words, list, text, spots] = await Promise.all(
    [json("head"), json("words"), block("list"), block("text"), block("spots")]);
  const n = head.features, column = (Type, at, length) => new Type(list, at, length);
  const index = {
    head, words, n,
    density: column(Float32Array, 0, n), max: column(Float32Array, 4 * n, n), mean: column(Float32Array, 8 * n, n),
    count: column(Uint32Array, 12 * n, n), promoted: column(Uint32Array, 16 * n, n * head.promoted),
    first: new Uint32Array(n + 1), top: column(Uint16Array, (16 + 4 * head.promoted) * n, n),
  };
  const examples = column(Uint16Array, (18 + 4 * head.promoted) * n, n);
  for (let i = 0; i < n; i++) index.first[i + 1] = index.first[i] + examples[i];
  const m = index.first[n];
  index.start = new Uint32Array(spots, 0, m);
  index.length = new Uint16Array(spots, 4 * m, m);
  index.peak = new Uint16Array(spots, 6 * m, m);
  index.text = head.wide ? new Uint32Array(text) : new Uint16Array(text);
  return index;
}

// Everything about one feature. A chunk is a JSON list, then the peaks, then a signed byte a token.
const chunks = new Map();
async function loadFeature(index, id) {
  const number = Math.floor(id / index.head.chunk);
  if (!chunks.has(number)) {
    if (chunks.size > 40) { const oldest = chunks.keys().next().value; chunks.delete(oldest); blocks.delete("c" + oldest); }
    const buffer = await block("c" + number), length = new Uint32Array(buffer, 0, 1)[0];
    chunks.set(number, { buffer, list: JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))), at: 4 + length });
  }
  const { buffer, list, at } = chunks.get(number), from = number * index.head.chunk;
  const begin = index.first[from], end = index.first[Math.min(from + index.head.chunk, index.n)];
  const peaks = new Float32Array(buffer, at, end - begin);
  let place = at + 4 * (end - begin);
  for (let i = begin; i < index.first[id]; i++) place += index.length[i];
  const examples = [];
  for (let i = index.first[id]; i < index.first[id + 1]; i++) {
    const length = index.length[i];
    examples.push({ spot: i, value: peaks[i - begin], levels: new Int8Array(buffer, place, length) });
    place += length;
  }
  return { ...list[id - from], id, examples };
}
