// Runs recorded chunks with onnxruntime-web on one thread: node browser.mjs NODE_MODULES RECORDED.json
// Prints a line of JSON for each list of chunks: seconds of all chunks, and voxels that differ from the expected labels.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, recorded] = process.argv.slice(2);
const ort = createRequire(path.resolve(modules, "x.js"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const KINDS = { float16: Uint16Array, float32: Float32Array, uint8: Uint8Array };
const file = JSON.parse(readFileSync(recorded, "utf8"));
const content = readFileSync(path.join(path.dirname(recorded), file.content));

function array({ type, shape, offset }) {
  const Kind = KINDS[type];
  const size = shape.reduce((all, each) => all * each, 1);
  const start = content.byteOffset + offset;
  return new Kind(content.buffer.slice(start, start + size * Kind.BYTES_PER_ELEMENT));
}

const sessions = {};
for (const [model, where] of Object.entries(file.models)) {
  sessions[model] = await ort.InferenceSession.create(readFileSync(where), { executionProviders: ["wasm"] });
}
for (let turn = 0; turn < file.turns; turn++) {
  for (const { model, search, chunks } of file.runs) {
    let seconds = 0;
    let differing = 0;
    for (const { inputs, labels } of chunks) {
      const feeds = {};
      for (const [name, each] of Object.entries(inputs)) {
        feeds[name] = new ort.Tensor(each.type, array(each), each.shape);
      }
      const begun = performance.now();
      const found = (await sessions[model].run(feeds, ["labels"])).labels.data;
      seconds += (performance.now() - begun) / 1000;
      const expected = array(labels);
      for (let voxel = 0; voxel < expected.length; voxel++) differing += found[voxel] !== expected[voxel];
    }
    console.log(JSON.stringify({ turn, model, search, seconds, differing }));
  }
}
