"""Python aiohttp: `python_aiohttp.py URL TLS_URL CA SOCKET` prints one line for each feature."""

import asyncio
import ssl

import aiohttp
from features import CA, LARGE, SOCKET, TLS_URL, TOO_LARGE, URL, chunks, fails, run, same


async def parts(value):
    for part in chunks(value):
        yield part


async def ask(status, method, path, base=URL, connector=None, **options):
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with session.request(method, base + path, **options) as response:
            same(response.status, status)
            return response.headers, await response.read()


def feature(function):
    return lambda: asyncio.run(function())


async def put():
    await ask(200, "PUT", "/k/a", data=b"value")


async def get():
    same((await ask(200, "GET", "/k/a"))[1], b"value")


async def chunked():
    await ask(200, "PUT", "/k/large", data=parts(LARGE))
    same((await ask(200, "GET", "/k/large"))[1], LARGE)


async def continued():
    await ask(200, "PUT", "/k/a", data=b"value", expect100=True)
    await ask(404, "PUT", "/nowhere", data=b"value", expect100=True)


async def ranged():
    same((await ask(206, "GET", "/k/a", headers={"Range": "bytes=1-3"}))[1], b"alu")


async def if_none_match():
    etag = (await ask(200, "GET", "/k/a"))[0]["ETag"]
    await ask(304, "GET", "/k/a", headers={"If-None-Match": etag})


async def if_match():
    etag = (await ask(200, "GET", "/k/a"))[0]["ETag"]
    await ask(200, "PUT", "/k/a", data=b"value", headers={"If-Match": etag})
    await ask(412, "PUT", "/k/a", data=b"other", headers={"If-Match": '"7"'})


async def refused():
    for _ in range(3):
        await ask(413, "PUT", "/k/large", data=TOO_LARGE)
        await ask(413, "PUT", "/k/large", data=parts(TOO_LARGE))


async def field(content, name):
    async for line in content:
        if line.startswith(name.encode() + b": "):
            return line.decode().rstrip("\n").split(": ", 1)[1]
    raise EOFError(f"the stream has no {name}")


async def watch():
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.get(URL + "/watch?prefix=w") as response:
            await field(response.content, "id")
            await ask(200, "PUT", "/k/w1", data=b"v")
            id = await field(response.content, "id")
            assert "w1" in await field(response.content, "data")
        await ask(200, "PUT", "/k/w2", data=b"v")
        async with session.get(URL + "/watch?prefix=w", headers={"Last-Event-ID": id}) as response:
            assert "w2" in await field(response.content, "data")


async def tls():
    trusting = ssl.create_default_context(cafile=CA)
    await ask(200, "PUT", "/k/a", TLS_URL, data=b"value", ssl=trusting)
    same((await ask(200, "GET", "/k/a", TLS_URL, ssl=trusting))[1], b"value")


def tls_with_trust_and_without():
    asyncio.run(tls())
    fails(lambda: asyncio.run(ask(200, "GET", "/k/a", TLS_URL)))


async def unix_socket():
    await ask(200, "PUT", "/k/a", "http://localhost", aiohttp.UnixConnector(SOCKET), data=b"value")


run(
    {
        "PUT": feature(put),
        "GET": feature(get),
        "chunked upload": feature(chunked),
        "100-continue": feature(continued),
        "range": feature(ranged),
        "If-None-Match": feature(if_none_match),
        "If-Match": feature(if_match),
        "413": feature(refused),
        "watch": feature(watch),
        "TLS": tls_with_trust_and_without,
        "Unix socket": feature(unix_socket),
    }
)
