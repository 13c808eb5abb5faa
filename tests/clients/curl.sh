#!/usr/bin/env bash
# curl: `curl.sh URL TLS_URL CA SOCKET` prints one line for each feature.
set -u
url=$1 tls=$2 ca=$3 socket=$4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
head -c 20000000 /dev/urandom >"$folder/20MB"
head -c 25165824 /dev/zero >"$folder/24MiB"

ask() { curl -sS --max-time 60 -o "$folder/body" -w '%{http_code}' "$@"; }
same() { [ "$1" = "$2" ] || { echo "expected $2, got $1"; return 1; }; }
holds() { same "$(ask "$url/k/$1")" 200 && cmp "$folder/body" "$2"; }
feature() {
  local reason
  if reason=$("$2" 2>&1); then printf '%s\tyes\n' "$1"; else printf '%s\tfail\t%s\n' "$1" "${reason//$'\n'/ }"; fi
}

get() { same "$(ask "$url/k/a")" 200 && same "$(cat "$folder/body")" value; }
put() { same "$(ask -X PUT --data-binary value "$url/k/a")" 200; }
chunked() { same "$(ask -T - "$url/k/large" <"$folder/20MB")" 200 && holds large "$folder/20MB"; }
continued() {
  same "$(ask -v -H 'Expect: 100-continue' -T "$folder/20MB" "$url/k/large" 2>"$folder/log")" 200 &&
    grep -q '^< HTTP/1.1 100' "$folder/log"
}
range() { same "$(ask -r 1-3 "$url/k/a")" 206 && same "$(cat "$folder/body")" alu; }
etag() { curl -sS -o /dev/null -w '%header{etag}' "$url/k/a"; }
if_none_match() { same "$(ask -H "If-None-Match: $(etag)" "$url/k/a")" 304; }
if_match() {
  same "$(ask -X PUT --data-binary value -H "If-Match: $(etag)" "$url/k/a")" 200 &&
    same "$(ask -X PUT --data-binary other -H 'If-Match: "7"' "$url/k/a")" 412
}
refused() {
  for _ in 1 2 3; do
    same "$(ask -T "$folder/24MiB" "$url/k/large")" 413 && same "$(ask -T - "$url/k/large" <"$folder/24MiB")" 413 || return
  done
}
# Prints the value of the next field of that name.
await() {
  local line
  while IFS= read -r -t 60 -u 3 line; do
    case $line in "$1: "*) echo "${line#*: }" && return ;; esac
  done
  echo "the stream has no $1" && return 1
}
watch() {
  local id
  exec 3< <(exec curl -sSN --max-time 60 "$url/watch?prefix=w")
  await id >/dev/null && ask -X PUT --data-binary v "$url/k/w1" >/dev/null && id=$(await id) && await data | grep -q w1 || return
  kill $!
  ask -X PUT --data-binary v "$url/k/w2" >/dev/null
  exec 3< <(exec curl -sSN --max-time 60 -H "Last-Event-ID: $id" "$url/watch?prefix=w")
  await data | grep -q w2 && kill $!
}
tls() {
  same "$(ask --cacert "$ca" -X PUT --data-binary value "$tls/k/a")" 200 && same "$(ask --cacert "$ca" "$tls/k/a")" 200 &&
    ! ask "$tls/k/a" 2>/dev/null
}
unix_socket() { same "$(ask --unix-socket "$socket" http://localhost/k/a -X PUT --data-binary value)" 200; }

feature "PUT" put
feature "GET" get
feature "chunked upload" chunked
feature "100-continue" continued
feature "range" range
feature "If-None-Match" if_none_match
feature "If-Match" if_match
feature "413" refused
feature "watch" watch
feature "TLS" tls
feature "Unix socket" unix_socket
