// Node's fetch: `node_fetch.mjs URL TLS_URL CA SOCKET` prints one line for each feature.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";

const [url, tlsUrl, ca] = process.argv.slice(2);
// Node reads further authorities at its start only.
if (process.env.NODE_EXTRA_CA_CERTS !== ca) {
  const env = { ...process.env, NODE_EXTRA_CA_CERTS: ca };
  process.exit(spawnSync(process.execPath, process.argv.slice(1), { env, stdio: "inherit" }).status);
}

const large = Buffer.alloc(20_000_000, Buffer.from(Array.from({ length: 251 }, (_, at) => at)));
const tooLarge = Buffer.alloc(24 << 20);

async function ask(status, method, path, { base = url, ...init } = {}) {
  const response = await fetch(base + path, { method, signal: AbortSignal.timeout(60_000), ...init });
  assert.equal(response.status, status);
  return response;
}

// A body whose length is unknown.
function streamed(value) {
  let at = 0;
  const pull = (controller) => {
    controller.enqueue(value.subarray(at, (at += 65536)));
    if (at >= value.length) controller.close();
  };
  return { body: new ReadableStream({ pull }), duplex: "half" };
}

async function text(response) {
  return response.text();
}

const features = {
  PUT: async () => ask(200, "PUT", "/k/a", { body: "value" }),
  GET: async () => assert.equal(await text(await ask(200, "GET", "/k/a")), "value"),
  "chunked upload": async () => {
    await ask(200, "PUT", "/k/large", streamed(large));
    const read = await (await ask(200, "GET", "/k/large")).arrayBuffer();
    assert(large.equals(Buffer.from(read)));
  },
  "100-continue": "fetch refuses the header field Expect",
  range: async () =>
    assert.equal(await text(await ask(206, "GET", "/k/a", { headers: { Range: "bytes=1-3" } })), "alu"),
  "If-None-Match": async () => {
    const etag = (await ask(200, "GET", "/k/a")).headers.get("ETag");
    await ask(304, "GET", "/k/a", { headers: { "If-None-Match": etag } });
  },
  "If-Match": async () => {
    const etag = (await ask(200, "GET", "/k/a")).headers.get("ETag");
    await ask(200, "PUT", "/k/a", { body: "value", headers: { "If-Match": etag } });
    await ask(412, "PUT", "/k/a", { body: "other", headers: { "If-Match": '"7"' } });
  },
  413: async () => {
    for (let round = 0; round < 3; round++) {
      await ask(413, "PUT", "/k/large", { body: tooLarge });
      await ask(413, "PUT", "/k/large", streamed(tooLarge));
    }
  },
  watch: async () => {
    const open = async (headers) => {
      const ended = new AbortController();
      setTimeout(() => ended.abort(), 60_000).unref();
      const response = await ask(200, "GET", "/watch?prefix=w", { headers, signal: ended.signal });
      const parts = response.body.pipeThrough(new TextDecoderStream())[Symbol.asyncIterator]();
      let read = "";
      const field = async (name) => {
        for (;;) {
          const found = new RegExp(`^${name}: (.*)\n`, "m").exec(read);
          if (found) {
            read = read.slice(found.index + found[0].length);
            return found[1];
          }
          const { done, value } = await parts.next();
          assert(!done, `the stream has no ${name}`);
          read += value;
        }
      };
      return { field, close: () => ended.abort() };
    };
    const first = await open({});
    await first.field("id");
    await ask(200, "PUT", "/k/w1", { body: "v" });
    const id = await first.field("id");
    assert.match(await first.field("data"), /w1/);
    first.close();
    await ask(200, "PUT", "/k/w2", { body: "v" });
    const second = await open({ "Last-Event-ID": id });
    assert.match(await second.field("data"), /w2/);
    second.close();
  },
  TLS: async () => {
    await ask(200, "PUT", "/k/a", { base: tlsUrl, body: "value" });
    assert.equal(await text(await ask(200, "GET", "/k/a", { base: tlsUrl })), "value");
  },
  "Unix socket": "fetch has no option for it; node:http has one",
};

for (const [name, feature] of Object.entries(features)) {
  if (typeof feature === "string") {
    console.log(`${name}\tno\t${feature}`);
    continue;
  }
  try {
    await feature();
    console.log(`${name}\tyes`);
  } catch (error) {
    console.log(`${name}\tfail\t${String(error.cause ?? error).replaceAll("\n", " ")}`);
  }
}
process.exit(0);
