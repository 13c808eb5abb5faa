"""What the scripts of Python's clients share: a client is a dictionary of features and functions."""

import sys

URL, TLS_URL, CA, SOCKET = sys.argv[1:5]
LARGE = (bytes(range(251)) * 79682)[:20_000_000]
TOO_LARGE = bytes(24 << 20)


def chunks(value):
    """Yields the value in parts, so that a client cannot know the length."""
    for at in range(0, len(value), 65536):
        yield value[at : at + 65536]


def run(features):
    """Runs each feature, and prints one line for it. A text is the reason why the client cannot have the feature."""
    for name, feature in features.items():
        if isinstance(feature, str):
            print(name, "no", feature, sep="\t")
            continue
        try:
            feature()
            print(name, "yes", sep="\t")
        except Exception as error:
            print(name, "fail", repr(error).replace("\n", " "), sep="\t")


def same(actual, expected):
    assert actual == expected, f"expected {expected!r:.100}, got {actual!r:.100}"


def field(lines, name):
    """Returns the value of the next field of that name in an event stream."""
    for line in lines:
        if line.startswith(name + ": "):
            return line.split(": ", 1)[1]
    raise EOFError(f"the stream has no {name}")


def fails(call):
    """Asserts that a call raises an exception."""
    try:
        call()
    except Exception:
        return
    raise AssertionError("it succeeded")
