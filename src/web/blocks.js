// The page's data: blocks of zlib in base64, inflated when they are first needed.
const parsed = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done, { once: true });
  else done();
});

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const blocks = new Map();
function block(name) {
  if (!blocks.has(name)) blocks.set(name, read(name));
  return blocks.get(name);
}

async function read(name) {
  let node = document.getElementById("block-" + name);
  // The list works while the browser still reads the chunks at the end of the file.
  if (!node || !node.nextSibling) { await parsed; node = document.getElementById("block-" + name); }
  if (!node) throw new Error("this page is cut off: it has no block " + name);
  const stream = new Blob([bytesOf(node.textContent)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const json = async (name) => JSON.parse(new TextDecoder().decode(await block(name)));
