// page.js and worker.js beside this file, of the sources in src: node build.mjs [FOLDER]
import { build } from "esbuild";

const common = { bundle: true, target: "es2022", charset: "utf8", legalComments: "inline", logLevel: "warning" };
const folder = process.argv[2] ?? ".";
await build({ ...common, entryPoints: ["src/page.ts"], format: "esm", outfile: `${folder}/page.js` });
// no module: LiteRT.js loads its wasm by importScripts, which modules do not have
await build({ ...common, entryPoints: ["src/worker.ts"], format: "iife", outfile: `${folder}/worker.js` });
