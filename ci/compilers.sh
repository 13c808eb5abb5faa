#!/usr/bin/env bash
# Finds Rust compilers to build plugins with, so that a test can show that a plugin loads whatever compiler built it.
#
# Usage: ci/compilers.sh DIR
#
# Prints the path of one rustc a line, each of another version than the others and than the rustc of the workspace: those that
# rustup has, and the VERSIONS below, which are put into DIR. They come from rustup; where its server cannot be reached, from
# Debian's packages, unpacked and not installed.
# A version that cannot be had is named on standard error and left out. A second run uses what the first one put into DIR.
set -euo pipefail

# The first that knows edition 2024, and the one after the oldest that builds the server.
VERSIONS="1.85.0 1.96.0"

mkdir -p "${1:?usage: ci/compilers.sh DIR}"
dir=$(cd "$1" && pwd)

# Puts a version into $dir/VERSION by rustup, in a home of its own, so that the toolchains of the user stay as they are.
from_rustup() {
  command -v rustup >/dev/null || return
  local version=$1 home=$dir/rustup
  RUSTUP_HOME=$home timeout 300 rustup --quiet toolchain install "$version" --profile minimal --no-self-update \
    >/dev/null 2>&1 || return
  mkdir -p "$dir/$version"
  ln -sfn "$(RUSTUP_HOME=$home rustup which --toolchain "$version" rustc)" "$dir/$version/rustc"
}

# The same from Debian: the compiler, its standard library and its LLVM, with a script that lets it find them.
from_debian() {
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return
  local version=$1 root=$dir/$1/root shared name revision std llvm deb
  apt-get update >/dev/null 2>&1 || true
  for name in rustc rustc-web; do
    revision=$(apt-cache madison "$name" 2>/dev/null | awk -v wanted="$version" '$3 ~ "^" wanted "[^0-9]" { print $3; exit }')
    [ -n "$revision" ] || continue
    std=libstd-rust${name#rustc}
    shared=$std-${version%.*}
    llvm=$(apt-cache show "$shared=$revision" | grep -o 'libllvm[0-9]*' | head -1)
    rm -rf "$root" && mkdir -p "$root/packages"
    (cd "$root/packages" && apt-get download "$name=$revision" "$std-dev=$revision" "$shared=$revision" "$llvm") \
      >/dev/null 2>&1 || return
    for deb in "$root"/packages/*.deb; do dpkg-deb --extract "$deb" "$root"; done
    rm -r "$root/packages"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$root/usr/lib/$(uname -m)-linux-gnu" "$root/usr/bin/rustc" \
      >"$dir/$version/rustc"
    chmod +x "$dir/$version/rustc"
    return
  done
  return 1
}

usable() { "$1" --version >/dev/null 2>&1; }

for version in $VERSIONS; do
  rustc=$dir/$version/rustc
  usable "$rustc" || from_rustup "$version" || from_debian "$version" || true
  usable "$rustc" || echo "compilers.sh: Rust $version cannot be had here, it is left out" >&2
done

{
  for version in $VERSIONS; do
    ! usable "$dir/$version/rustc" || echo "$dir/$version/rustc"
  done
  for toolchain in $(rustup toolchain list 2>/dev/null | awk '{ print $1 }'); do
    rustup which --toolchain "$toolchain" rustc 2>/dev/null || true
  done
} | while read -r rustc; do
  printf '%s\t%s\n' "$("$rustc" --version | cut -d' ' -f2)" "$rustc"
done | awk -v own="$(rustc --version 2>/dev/null | cut -d' ' -f2)" '$1 != own' | sort -u -k1,1 | cut -f2
