//! `wasm-compile`: makes machine code of one image, in a process that may take only so much.
//!
//! Called as `wasm-compile INPUT OUTPUT MEMORY_BYTES CPU_SECONDS [UID GID]`. It writes the code to
//! OUTPUT, which exists, and prints a [`Compiled`] as JSON; or it prints one line to stderr for the
//! pod's status and fails. Bytes from outside are parsed and compiled nowhere else.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use crate::artifact::{Compiled, Kind};
use crate::host::{privileges, seccomp, version};

const IMAGE_BYTES_MAX: u64 = 256 << 20;

/// The `wasm-compile` subcommand; `args` come after its name.
pub fn compile_main(args: impl IntoIterator<Item = String>) -> ExitCode {
    match run(&args.into_iter().collect::<Vec<_>>()) {
        Ok(compiled) => {
            println!("{}", serde_json::to_string(&compiled).expect("it is plain data"));
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<Compiled, String> {
    let usage = || "usage: wasm-compile INPUT OUTPUT MEMORY_BYTES CPU_SECONDS [UID GID]".to_owned();
    let [input, output, limits @ ..] = args else { return Err(usage()) };
    let limits: Vec<u64> =
        limits.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(|_| usage())?;
    let (&[memory, seconds], user) = limits.split_first_chunk::<2>().ok_or_else(usage)?;

    // Files are opened before the user changes, limits are set before a byte is read.
    let mut source = File::open(input)
        .map_err(|error| format!("cannot read the image's file {input}: {error}"))?;
    let mut target =
        File::create(output).map_err(|error| format!("cannot write {output}: {error}"))?;
    privileges::limit_compiler(memory, seconds)
        .map_err(|error| format!("cannot limit wasm-compile: {error}"))?;
    if let &[uid, gid] = user {
        let ids =
            (u32::try_from(uid).map_err(|_| usage())?, u32::try_from(gid).map_err(|_| usage())?);
        privileges::become_user(ids.0, ids.1, &[])
            .map_err(|error| format!("cannot drop root for wasm-compile: {error}"))?;
    }
    privileges::no_new_privileges();
    seccomp::confine(seccomp::Work::Compile)?;

    let mut wasm = Vec::new();
    let read = Read::by_ref(&mut source).take(IMAGE_BYTES_MAX + 1).read_to_end(&mut wasm);
    read.map_err(|error| format!("cannot read the image's file {input}: {error}"))?;
    if wasm.len() as u64 > IMAGE_BYTES_MAX {
        return Err(format!("the image is larger than {} MiB", IMAGE_BYTES_MAX >> 20));
    }
    let engine = crate::engine::compiler().map_err(|error| format!("{error:#}"))?;
    let (kind, sockets, code) = compile(&engine, &wasm)?;
    target
        .write_all(&code)
        .and_then(|()| target.sync_all())
        .map_err(|error| format!("cannot write {output}: {error}"))?;
    Ok(Compiled { kind, sockets, bytes: code.len() as u64, crc32: crc32fast::hash(&code) })
}

fn compile(engine: &Engine, wasm: &[u8]) -> Result<(Kind, bool, Vec<u8>), String> {
    let broken = |error: wasmtime::Error| format!("the image is not valid WebAssembly: {error:#}");
    match wasm.get(..8) {
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => {
            let module = Module::new(engine, wasm).map_err(broken)?;
            if module.get_export("_start").is_none() {
                return Err(
                    "the image is a core module without `_start`: a WASI preview-1 program or a component was expected".into()
                );
            }
            Ok((Kind::Preview1, false, module.serialize().map_err(broken)?))
        }
        Some([0, b'a', b's', b'm', ..]) => {
            let component = Component::new(engine, wasm).map_err(broken)?;
            let ty = component.component_type();
            let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
            let kind = kind_of(&exports)?;
            let sockets = ty.imports(engine).any(|(name, _)| {
                let interface = name.split('@').next().unwrap_or(name);
                matches!(
                    interface,
                    "wasi:sockets/tcp"
                        | "wasi:sockets/tcp-create-socket"
                        | "wasi:sockets/udp"
                        | "wasi:sockets/udp-create-socket"
                ) || (interface == "wasi:sockets/types" && version::is(name, 0, 3))
            });
            Ok((kind, sockets, component.serialize().map_err(broken)?))
        }
        _ => Err("the image is not WebAssembly: it does not begin with the bytes `\\0asm`".into()),
    }
}

/// A handler that can also be run as a command is a handler.
fn kind_of(exports: &[&str]) -> Result<Kind, String> {
    let has = |interface: &str, minor| {
        exports
            .iter()
            .any(|name| name.split('@').next() == Some(interface) && version::is(name, 0, minor))
    };
    [
        ("wasi:http/incoming-handler", 2, Kind::Handler),
        ("wasi:http/handler", 3, Kind::HandlerP3),
        ("wasi:cli/run", 2, Kind::Command),
        ("wasi:cli/run", 3, Kind::CommandP3),
    ]
    .into_iter()
    .find_map(|(interface, minor, kind)| has(interface, minor).then_some(kind))
    .ok_or_else(|| {
        let list = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
        format!(
            "the component exports {list}; this node runs wasi:http/incoming-handler@0.2, wasi:http/handler@0.3 and wasi:cli/run"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_kind(exports: &[&str], expected: Result<Kind, &str>) {
        match (kind_of(exports), expected) {
            (Ok(kind), Ok(expected)) => assert_eq!(kind, expected),
            (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn exports_decide_what_a_component_is() {
        check_kind(&["wasi:http/incoming-handler@0.2.3"], Ok(Kind::Handler));
        check_kind(&["wasi:cli/run@0.2.0", "wasi:http/incoming-handler@0.2.12"], Ok(Kind::Handler));
        check_kind(&["wasi:http/handler@0.3.0"], Ok(Kind::HandlerP3));
        check_kind(&["wasi:cli/run@0.2.12"], Ok(Kind::Command));
        check_kind(&["wasi:cli/run@0.3.0"], Ok(Kind::CommandP3));
        check_kind(&["wasi:cli/run@0.9.0"], Err("exports wasi:cli/run@0.9.0"));
        check_kind(&["a:b/c"], Err("exports a:b/c; this node runs"));
        check_kind(&[], Err("exports nothing"));
    }

    #[test]
    fn what_is_not_wasm_is_refused_by_name() {
        let engine = crate::engine::compiler().unwrap();
        for (bytes, said) in [
            (&b"#!/bin/sh"[..], "is not WebAssembly"),
            (b"", "is not WebAssembly"),
            (b"\0asm\x01\0\0\0garbage", "not valid WebAssembly"),
            (b"\0asm\x01\0\0\0", "without `_start`"),
        ] {
            let error = compile(&engine, bytes).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
