"""Drives the client that openapi-python-client generates: client.py URL FOLDER, where FOLDER has the package vkog_client."""

import io
import sys

sys.path.insert(0, sys.argv[2])

from vkog_client import Client
from vkog_client.api.default import batch, create, list_, live, metrics, read, remove, update
from vkog_client.models import OperationType0, OperationType0Op, OperationType1, OperationType1Op
from vkog_client.types import File

client = Client(base_url=sys.argv[1])


def body(value):
    return File(payload=io.BytesIO(value))


def put(key, value, **conditions):
    return update.sync_detailed(key, client=client, body=body(value), **conditions)


def equal(what, found, expected):
    assert found == expected, f"{what}: {found!r}, expected {expected!r}"
    print("ok", what)


equal("live", live.sync(client=client), "Ok")
equal("put", put("a/1", b"one").status_code, 200)
got = read.sync_detailed("a/1", client=client)
equal("get", got.content, b"one")
equal("get parsed", read.sync("a/1", client=client).payload.read(), b"one")
equal("bytes", put("a/\u00e9 +%", bytes(range(256))).status_code, 200)
equal("bytes read", read.sync("a/\u00e9 +%", client=client).payload.read(), bytes(range(256)))
equal("part", read.sync("a/1", client=client, range_="bytes=1-").payload.read(), b"ne")
etag = got.headers["etag"]
equal("put if it matches", put("a/1", b"two", if_match=etag).status_code, 200)
equal("put if it does not match", put("a/1", b"three", if_match=etag).status_code, 412)
equal("create", create.sync("b", client=client, body=body(b"b"), if_none_match="*"), "Ok")
equal("create again", put("b", b"b", if_none_match="*").status_code, 412)
equal("not found", read.sync_detailed("absent", client=client).status_code, 404)
equal("list", [key.key for key in list_.sync(client=client, prefix="a/").keys], ["a/1", "a/\u00e9 +%"])
equal("page", list_.sync(client=client, limit=1).next_, "a/1")
equal("count", list_.sync(client=client, prefix="a/", count="").count, 2)
done = batch.sync(
    client=client,
    body=[
        OperationType1(op=OperationType1Op.PUT, key="c", value="c"),
        OperationType0(op=OperationType0Op.GET, key="c"),
        OperationType0(op=OperationType0Op.DELETE, key="b"),
    ],
)
equal("batch", [each.status.value for each in done], [200, 200, 200])
equal("batch read", done[1].value, "c")
equal("delete", remove.sync("c", client=client), "Ok")
equal("delete again", remove.sync_detailed("c", client=client).status_code, 404)
equal("metrics", "vkog_entries 2" in metrics.sync(client=client).splitlines(), True)
print("done")
