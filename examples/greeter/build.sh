#!/usr/bin/env bash
# Rebuilds greeter.wasm from guest/. With rustup: the wasm32-wasip2 target. On Debian without it: the
# distribution's Rust for the web, its standard library's source and wasi-libc.
set -euo pipefail
cd "$(dirname "$0")/guest"
target=${CARGO_TARGET_DIR:-$PWD/../../../target/guests}
flags="--remap-path-prefix=$HOME/.cargo/registry/src=registry --remap-path-prefix=$PWD=greeter"
if rustup target list --installed 2>/dev/null | grep -q wasm32-wasip2; then
    RUSTFLAGS="$flags" CARGO_TARGET_DIR=$target cargo build --release --target wasm32-wasip2
else
    for package in rustc-web rust-web-src wasi-libc; do
        dpkg -s "$package" >/dev/null 2>&1 || {
            echo "installing $package: to build for wasm32-wasip2 without rustup"
            apt-get install -y -qq "$package" >/dev/null
        }
    done
    libc=$(mktemp -d)
    trap 'rm -rf "$libc"' EXIT
    cp /usr/lib/wasm32-wasi/libc.a /usr/lib/wasm32-wasi/crt1*.o "$libc"
    flags="$flags --remap-path-prefix=/usr/lib/rustlib/src=rust-src"
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-L$libc $flags" CARGO_TARGET_DIR=$target \
        cargo build --release -Zbuild-std=std,panic_abort --target wasm32-wasip2
fi
cp "$target/wasm32-wasip2/release/greeter.wasm" ..
cd .. && sha256sum greeter.wasm >SHA256SUMS && cat SHA256SUMS
