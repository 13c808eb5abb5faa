#!/usr/bin/env bash
# wget: `wget.sh URL TLS_URL CA SOCKET` prints one line for each feature.
set -u
url=$1 tls=$2 ca=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
head -c 25165824 /dev/zero >"$folder/24MiB"

# Prints the status; wget itself has one exit status for all errors of a server.
ask() {
  wget -S --tries=1 --timeout=60 --no-netrc -O "$folder/body" "$@" 2>"$folder/log"
  sed -n 's#^  HTTP/1.1 \([0-9]*\).*#\1#p' "$folder/log" | tail -1
}
same() { [ "$1" = "$2" ] || { echo "expected $2, got $1"; return 1; }; }
feature() {
  local reason
  if reason=$("$2" 2>&1); then printf '%s\tyes\n' "$1"; else printf '%s\tfail\t%s\n' "$1" "${reason//$'\n'/ }"; fi
}

put() { same "$(ask --method=PUT --body-data=value "$url/k/a")" 200; }
get() { same "$(ask "$url/k/a")" 200 && same "$(cat "$folder/body")" value; }
range() { same "$(ask --start-pos=1 "$url/k/a")" 206 && same "$(cat "$folder/body")" alue; }
etag() { ask "$url/k/a" >/dev/null && sed -n 's/^  ETag: //Ip' "$folder/log"; }
if_none_match() { same "$(ask --header "If-None-Match: $(etag)" "$url/k/a")" 304; }
if_match() {
  same "$(ask --method=PUT --body-data=value --header "If-Match: $(etag)" "$url/k/a")" 200 &&
    same "$(ask --method=PUT --body-data=other --header 'If-Match: "7"' "$url/k/a")" 412
}
refused() { for _ in 1 2 3; do same "$(ask --method=PUT --body-file="$folder/24MiB" "$url/k/large")" 413 || return; done; }
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
  exec 3< <(exec wget -qO - "$url/watch?prefix=w")
  await id >/dev/null && put_key w1 && id=$(await id) && await data | grep -q w1 || return
  kill $!
  put_key w2
  exec 3< <(exec wget -qO - --header "Last-Event-ID: $id" "$url/watch?prefix=w")
  await data | grep -q w2 && kill $!
}
put_key() { ask --method=PUT --body-data=v "$url/k/$1" >/dev/null; }
tls() {
  same "$(ask --ca-certificate="$ca" --method=PUT --body-data=value "$tls/k/a")" 200 &&
    same "$(ask --ca-certificate="$ca" "$tls/k/a")" 200 && same "$(ask "$tls/k/a")" ""
}

feature "PUT" put
feature "GET" get
printf 'chunked upload\tno\twget always sends Content-Length\n'
printf '100-continue\tno\twget sends the body at once\n'
feature "range" range
feature "If-None-Match" if_none_match
feature "If-Match" if_match
feature "413" refused
feature "watch" watch
feature "TLS" tls
printf 'Unix socket\tno\twget has no option for it\n'
