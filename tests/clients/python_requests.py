"""Python requests: `python_requests.py URL TLS_URL CA SOCKET` prints one line for each feature."""

import requests
from features import CA, LARGE, TLS_URL, TOO_LARGE, URL, chunks, fails, field, run, same

client = requests.Session()
client.trust_env = False


def ask(status, method, path, base=URL, **options):
    response = client.request(method, base + path, timeout=60, **options)
    same(response.status_code, status)
    return response


def get():
    same(ask(200, "GET", "/k/a").content, b"value")


def chunked():
    ask(200, "PUT", "/k/large", data=chunks(LARGE))
    same(ask(200, "GET", "/k/large").content, LARGE)


def if_none_match():
    etag = ask(200, "GET", "/k/a").headers["ETag"]
    ask(304, "GET", "/k/a", headers={"If-None-Match": etag})


def if_match():
    etag = ask(200, "GET", "/k/a").headers["ETag"]
    ask(200, "PUT", "/k/a", data=b"value", headers={"If-Match": etag})
    ask(412, "PUT", "/k/a", data=b"other", headers={"If-Match": '"7"'})


def refused():
    for _ in range(3):
        ask(413, "PUT", "/k/large", data=TOO_LARGE)
        ask(413, "PUT", "/k/large", data=chunks(TOO_LARGE))


def watch():
    def stream(**headers):
        response = ask(200, "GET", "/watch?prefix=w", stream=True, headers=headers)
        return response, response.iter_lines(chunk_size=1, decode_unicode=True)

    response, lines = stream()
    field(lines, "id")
    ask(200, "PUT", "/k/w1", data=b"v")
    id = field(lines, "id")
    assert "w1" in field(lines, "data")
    response.close()
    ask(200, "PUT", "/k/w2", data=b"v")
    response, lines = stream(**{"Last-Event-ID": id})
    assert "w2" in field(lines, "data")
    response.close()


def tls():
    ask(200, "PUT", "/k/a", TLS_URL, data=b"value", verify=CA)
    same(ask(200, "GET", "/k/a", TLS_URL, verify=CA).content, b"value")
    fails(lambda: requests.get(TLS_URL + "/k/a", timeout=60))


run(
    {
        "PUT": lambda: ask(200, "PUT", "/k/a", data=b"value"),
        "GET": get,
        "chunked upload": chunked,
        "100-continue": "requests sends the body at once",
        "range": lambda: same(ask(206, "GET", "/k/a", headers={"Range": "bytes=1-3"}).content, b"alu"),
        "If-None-Match": if_none_match,
        "If-Match": if_match,
        "413": refused,
        "watch": watch,
        "TLS": tls,
        "Unix socket": "needs another package, such as requests-unixsocket",
    }
)
