// Drives the types that openapi-typescript generates, by openapi-fetch: node client.js URL.
import createClient from "openapi-fetch";
import type { components, paths } from "./vkog.js";

declare const process: { argv: string[] };

const client = createClient<paths>({ baseUrl: process.argv[2] });

function equal(what: string, found: unknown, expected: unknown) {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`${what}: ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
  }
  console.log("ok", what);
}

const put = (key: string, value: string, header: Record<string, string> = {}) =>
  client.PUT("/k/{key}", {
    params: { path: { key }, header },
    body: value,
    bodySerializer: (body) => body,
    headers: { "Content-Type": "application/octet-stream" },
    parseAs: "text",
  });
const get = (key: string) => client.GET("/k/{key}", { params: { path: { key } }, parseAs: "text" });

equal("live", (await client.GET("/livez", { parseAs: "text" })).data, "Ok");
equal("put", (await put("a/1", "one")).response.status, 200);
const got = await get("a/1");
equal("get", got.data, "one");
equal("text", (await put("a/\u00e9 +%", "\u20ac")).response.status, 200);
equal("text read", (await get("a/\u00e9 +%")).data, "\u20ac");
const etag = got.response.headers.get("etag") ?? "";
equal("put if it matches", (await put("a/1", "two", { "If-Match": etag })).response.status, 200);
equal("put if it does not match", (await put("a/1", "three", { "If-Match": etag })).response.status, 412);
equal("create", (await put("b", "b", { "If-None-Match": "*" })).response.status, 200);
equal("create again", (await put("b", "b", { "If-None-Match": "*" })).response.status, 412);
equal("not found", (await get("absent")).response.status, 404);
const page = (await client.GET("/keys", { params: { query: { prefix: "a/" } } })).data;
equal("list", page && "keys" in page ? page.keys.map((key) => key.key) : page, ["a/1", "a/\u00e9 +%"]);
const count = (await client.GET("/keys", { params: { query: { prefix: "a/", limit: 1000, count: "" } } })).data;
equal("count", count && "count" in count ? count.count : count, 2);
const batch = await client.POST("/batch", {
  body: [
    { op: "put", key: "c", value: "c" },
    { op: "get", key: "c" },
    { op: "delete", key: "b" },
  ],
});
// MessagePack has the same content, which the types cannot say.
const done = batch.data as components["schemas"]["Done"][];
equal("batch", done.map((each) => each.status), [200, 200, 200]);
equal("batch read", done[1].value, "c");
const remove = () => client.DELETE("/k/{key}", { params: { path: { key: "c" } }, parseAs: "text" });
equal("delete", (await remove()).data, "Ok");
equal("delete again", (await remove()).response.status, 404);
console.log("done");
