"""Python httpx: `python_httpx.py URL TLS_URL CA SOCKET` prints one line for each feature."""

import ssl

import httpx
from features import CA, LARGE, SOCKET, TLS_URL, TOO_LARGE, URL, chunks, fails, field, run, same

client = httpx.Client(timeout=60, trust_env=False)


def ask(status, method, path, base=URL, client=client, **options):
    response = client.request(method, base + path, **options)
    same(response.status_code, status)
    return response


def get():
    same(ask(200, "GET", "/k/a").content, b"value")


def chunked():
    ask(200, "PUT", "/k/large", content=chunks(LARGE))
    same(ask(200, "GET", "/k/large").content, LARGE)


def if_none_match():
    etag = ask(200, "GET", "/k/a").headers["ETag"]
    ask(304, "GET", "/k/a", headers={"If-None-Match": etag})


def if_match():
    etag = ask(200, "GET", "/k/a").headers["ETag"]
    ask(200, "PUT", "/k/a", content=b"value", headers={"If-Match": etag})
    ask(412, "PUT", "/k/a", content=b"other", headers={"If-Match": '"7"'})


def refused():
    for _ in range(3):
        ask(413, "PUT", "/k/large", content=TOO_LARGE)
        ask(413, "PUT", "/k/large", content=chunks(TOO_LARGE))


def watch():
    with client.stream("GET", URL + "/watch?prefix=w") as response:
        lines = response.iter_lines()
        field(lines, "id")
        ask(200, "PUT", "/k/w1", content=b"v")
        id = field(lines, "id")
        assert "w1" in field(lines, "data")
    ask(200, "PUT", "/k/w2", content=b"v")
    with client.stream("GET", URL + "/watch?prefix=w", headers={"Last-Event-ID": id}) as response:
        assert "w2" in field(response.iter_lines(), "data")


def tls():
    trusting = httpx.Client(verify=ssl.create_default_context(cafile=CA), timeout=60, trust_env=False)
    ask(200, "PUT", "/k/a", TLS_URL, trusting, content=b"value")
    same(ask(200, "GET", "/k/a", TLS_URL, trusting).content, b"value")
    fails(lambda: client.get(TLS_URL + "/k/a"))


def unix_socket():
    local = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), timeout=60)
    ask(200, "PUT", "/k/a", "http://localhost", local, content=b"value")


run(
    {
        "PUT": lambda: ask(200, "PUT", "/k/a", content=b"value"),
        "GET": get,
        "chunked upload": chunked,
        "100-continue": "httpx sends the body at once",
        "range": lambda: same(ask(206, "GET", "/k/a", headers={"Range": "bytes=1-3"}).content, b"alu"),
        "If-None-Match": if_none_match,
        "If-Match": if_match,
        "413": refused,
        "watch": watch,
        "TLS": tls,
        "Unix socket": unix_socket,
    }
)
