//! The Wasm runtime: wasmtime in wasm-host processes
