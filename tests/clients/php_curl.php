<?php
// PHP's curl: `php php_curl.php URL TLS_URL CA SOCKET` prints one line for each feature.

[, $url, $tls, $ca, $socket] = $argv;
ini_set('memory_limit', '256M');
$large = random_bytes(20_000_000);
$too_large = str_repeat("\0", 24 << 20);

function feature(string $name, callable $run): void
{
    try {
        $run();
        echo "$name\tyes\n";
    } catch (Exception $error) {
        echo "$name\tfail\t", strtr($error->getMessage(), "\n", ' '), "\n";
    }
}

function same($actual, $expected): void
{
    if ($actual !== $expected) {
        throw new Exception('expected ' . substr(var_export($expected, true), 0, 100) . ', got ' . substr(var_export($actual, true), 0, 100));
    }
}

/** Sends a request, and returns the body and the lines of all heads. */
function ask(int $status, string $method, string $url, array $options = []): array
{
    $heads = [];
    $handle = curl_init($url);
    curl_setopt_array($handle, $options + [
        CURLOPT_CUSTOMREQUEST => $method,
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 60,
        CURLOPT_HEADERFUNCTION => function ($handle, $line) use (&$heads) {
            $heads[] = trim($line);
            return strlen($line);
        },
    ]);
    $body = curl_exec($handle);
    if ($body === false) {
        throw new Exception(curl_error($handle));
    }
    same(curl_getinfo($handle, CURLINFO_RESPONSE_CODE), $status);
    return [$body, $heads];
}

function body(string $value, array $fields = []): array
{
    return [CURLOPT_POSTFIELDS => $value, CURLOPT_HTTPHEADER => $fields];
}

/** A body whose length is unknown. */
function streamed(string $value): array
{
    $at = 0;
    $read = function ($handle, $file, $length) use ($value, &$at) {
        $part = substr($value, $at, $length);
        $at += strlen($part);
        return $part;
    };
    return [CURLOPT_UPLOAD => true, CURLOPT_READFUNCTION => $read];
}

function etag(string $url): string
{
    $found = array_values(preg_grep('/^etag: /i', ask(200, 'GET', "$url/k/a")[1]));
    return substr($found[0], 6);
}

/** Watches until an event has data; returns its id and its data. */
function watch(string $url, array $fields, ?callable $begun): array
{
    $text = '';
    $write = function ($handle, $part) use (&$text, &$begun) {
        $text .= $part;
        if ($begun && str_contains($text, 'id: ')) {
            $begun();
            $begun = null;
        }
        return preg_match('/^data: .*\n/m', $text) ? 0 : strlen($part);
    };
    $handle = curl_init("$url/watch?prefix=w");
    curl_setopt_array($handle, [CURLOPT_WRITEFUNCTION => $write, CURLOPT_HTTPHEADER => $fields, CURLOPT_TIMEOUT => 60]);
    curl_exec($handle);
    same(curl_errno($handle), CURLE_WRITE_ERROR);
    preg_match_all('/^id: (.*)$/m', $text, $ids);
    preg_match('/^data: (.*)$/m', $text, $data);
    return [end($ids[1]), $data[1]];
}

feature('PUT', fn() => ask(200, 'PUT', "$url/k/a", body('value')));
feature('GET', fn() => same(ask(200, 'GET', "$url/k/a")[0], 'value'));
feature('chunked upload', function () use ($url, $large) {
    ask(200, 'PUT', "$url/k/large", streamed($large));
    same(ask(200, 'GET', "$url/k/large")[0] === $large, true);
});
feature('100-continue', function () use ($url, $large) {
    [, $heads] = ask(200, 'PUT', "$url/k/large", body($large, ['Expect: 100-continue']));
    same($heads[0], 'HTTP/1.1 100 Continue');
});
feature('range', fn() => same(ask(206, 'GET', "$url/k/a", [CURLOPT_RANGE => '1-3'])[0], 'alu'));
feature('If-None-Match', fn() => ask(304, 'GET', "$url/k/a", [CURLOPT_HTTPHEADER => ['If-None-Match: ' . etag($url)]]));
feature('If-Match', function () use ($url) {
    ask(200, 'PUT', "$url/k/a", body('value', ['If-Match: ' . etag($url)]));
    ask(412, 'PUT', "$url/k/a", body('other', ['If-Match: "7"']));
});
feature('413', function () use ($url, $too_large) {
    for ($round = 0; $round < 3; $round++) {
        ask(413, 'PUT', "$url/k/large", body($too_large));
        ask(413, 'PUT', "$url/k/large", streamed($too_large));
    }
});
feature('watch', function () use ($url) {
    [$id, $data] = watch($url, [], fn() => ask(200, 'PUT', "$url/k/w1", body('v')));
    same(str_contains($data, 'w1'), true);
    ask(200, 'PUT', "$url/k/w2", body('v'));
    same(str_contains(watch($url, ["Last-Event-ID: $id"], null)[1], 'w2'), true);
});
feature('TLS', function () use ($tls, $ca) {
    ask(200, 'PUT', "$tls/k/a", [CURLOPT_CAINFO => $ca] + body('value'));
    same(ask(200, 'GET', "$tls/k/a", [CURLOPT_CAINFO => $ca])[0], 'value');
    try {
        ask(200, 'GET', "$tls/k/a");
    } catch (Exception $error) {
        return;
    }
    throw new Exception('an unknown authority is trusted');
});
feature('Unix socket', fn() => ask(200, 'PUT', 'http://localhost/k/a', [CURLOPT_UNIX_SOCKET_PATH => $socket] + body('value')));
