#!/usr/bin/env bash
# Builds for Windows (x86_64-pc-windows-gnu), and runs what was built by Wine, on a Debian machine.
#
# Usage: ci/windows.sh DIR setup             gets all that is needed into DIR; installs Wine and MinGW, if they are not there
#        ci/windows.sh DIR build ARGUMENT…   cargo build ARGUMENT… for Windows, in the current folder
#        ci/windows.sh DIR run PROGRAM ARGUMENT…
#
# VKOG_WINDOWS="ci/windows.sh DIR" has the tests and `cargo xtask dist` use it. `build` builds with the profile `release`, or
# with the one that VKOG_WINDOWS_PROFILE names. Setup fails where something cannot be had.
set -euo pipefail

usage="usage: ci/windows.sh DIR setup | build ARGUMENT… | run PROGRAM ARGUMENT…"
mkdir -p "${1:?$usage}"
dir=$(cd "$1" && pwd)
command=${2:?$usage}
shift 2
target=x86_64-pc-windows-gnu
version=1.95.0

export WINEPREFIX=$dir/wine WINEDEBUG=-all
# What a cargo that runs this says about its package makes build scripts of dependencies run again.
unset "${!CARGO_PKG_@}" "${!CARGO_MANIFEST_@}"

# Has $dir/rustc run this compiler. Cargo, if rustup runs it, has the libraries of its own compiler in LD_LIBRARY_PATH: with those
# it would be that compiler, which knows no Windows.
use_rustc() {
  printf '#!/bin/sh\nunset LD_LIBRARY_PATH\nexec "%s" "$@"\n' "$1" >"$dir/rustc"
  chmod +x "$dir/rustc"
}

# Rust and its standard library for Windows from rustup, in a home of its own: the toolchains of the user stay as they are.
rust_from_rustup() {
  command -v rustup >/dev/null || return
  RUSTUP_HOME=$dir/rustup timeout 600 rustup --quiet toolchain install "$version" --profile minimal --target "$target" \
    --no-self-update >/dev/null 2>&1 || return
  use_rustc "$(RUSTUP_HOME=$dir/rustup rustup which --toolchain "$version" rustc)"
}

# Where rustup's server cannot be reached: a compiler of Debian, and the sources of its standard library, which cargo then builds
# (`-Z build-std`). Of the two objects that programs for Windows begin and end with, Debian has the sources too.
rust_from_debian() {
  local rustc root release revision object library
  rustc=$("$(dirname "$0")/compilers.sh" "$dir/compilers" | grep "^$dir/compilers/" | tail -1) && [ -n "$rustc" ] || return
  root=$(dirname "$rustc")/root release=$("$rustc" --version | cut -d' ' -f2)
  library=$root/usr/src/rustc-$release/library
  if [ ! -e "$library" ]; then
    revision=$(apt-cache madison rust-web-src | awk -v wanted="$release" '$3 ~ "^" wanted "[^0-9]" { print $3; exit }')
    [ -n "$revision" ] || return
    (cd "$dir" && apt-get download "rust-web-src=$revision" && dpkg-deb --extract rust-web-src_*.deb "$root" &&
      rm rust-web-src_*.deb) >/dev/null 2>&1 || return
  fi
  mkdir -p "$root/usr/lib/rustlib/$target/lib"
  for object in rsbegin rsend; do
    RUSTC_BOOTSTRAP=1 "$rustc" --target "$target" --emit=obj -o "$root/usr/lib/rustlib/$target/lib/$object.o" \
      "$library/rtstartup/$object.rs" || return
  done
  use_rustc "$rustc"
  touch "$dir/build-std"
}

setup() {
  if ! command -v wine >/dev/null || ! command -v x86_64-w64-mingw32-gcc >/dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends gcc-mingw-w64-x86-64-win32 wine wine64; } >/dev/null 2>&1 || {
      echo "windows.sh: Wine and MinGW are not installed and cannot be had by apt-get" >&2
      return 1
    }
  fi
  if ! "$dir/rustc" --version >/dev/null 2>&1 && ! rust_from_rustup && ! rust_from_debian; then
    echo "windows.sh: a Rust compiler for $target can be had neither from rustup nor from Debian" >&2
    return 1
  fi
  # Rust's standard library takes random numbers from a library that Wine 8 does not have: this is one with that function.
  if [ ! -e "$dir/bcryptprimitives.dll" ]; then
    cat >"$dir/random.c" <<'C'
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T length) {
  return RtlGenRandom(bytes, (ULONG)length);
}
C
    x86_64-w64-mingw32-gcc -O2 -shared "$dir/random.c" -o "$dir/bcryptprimitives.dll" -ladvapi32
  fi
  [ -e "$dir/wine/system.reg" ] || wine wineboot --init >/dev/null 2>&1 || [ -e "$dir/wine/system.reg" ]
}

case $command in
setup) setup ;;
build)
  export RUSTC=$dir/rustc CARGO_TARGET_DIR=$dir/target
  std=()
  if [ -e "$dir/build-std" ]; then
    export RUSTC_BOOTSTRAP=1
    std=(-Z "build-std=std,panic_unwind")
  fi
  exec cargo build "${std[@]}" --profile "${VKOG_WINDOWS_PROFILE:-release}" --target "$target" "$@"
  ;;
run)
  program=${1:?$usage}
  shift
  beside=$(dirname "$program")/bcryptprimitives.dll
  [ -e "$beside" ] || cp "$dir/bcryptprimitives.dll" "$beside"
  exec wine "$program" "$@"
  ;;
*)
  echo "$usage" >&2
  exit 2
  ;;
esac
