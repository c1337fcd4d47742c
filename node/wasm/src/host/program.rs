//! An image, loaded: its machine code mapped into memory, its imports satisfied. Loaded once per
//! host, whatever number of pods runs it.

use std::path::Path;
use std::sync::Arc;

use rimward_node_pod::runtime::StartError;
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Module};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as CommandP3Pre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::guest::{self, Guest, Preview1Guest};
use crate::artifact::{Artifact, Kind};
use crate::protocol::ARTIFACT_DAMAGED;

pub(crate) enum Program {
    Handler(ProxyPre<Guest>),
    HandlerP3(ServicePre<Guest>),
    Command(CommandPre<Guest>),
    CommandP3(CommandP3Pre<Guest>),
    Preview1(Box<wasmtime::InstancePre<Preview1Guest>>),
}

impl Program {
    /// The same component as a command: what exec runs. None when it exports no `wasi:cli/run`.
    pub fn command(self: &Arc<Self>) -> Option<Arc<Self>> {
        match &**self {
            Self::Command(_) | Self::CommandP3(_) | Self::Preview1(_) => Some(self.clone()),
            Self::Handler(handler) => CommandPre::new(handler.instance_pre().clone())
                .ok()
                .map(Self::Command)
                .map(Arc::new),
            Self::HandlerP3(handler) => CommandP3Pre::new(handler.instance_pre().clone())
                .ok()
                .map(Self::CommandP3)
                .map(Arc::new),
        }
    }
}

/// What programs are linked with: one a host.
pub(crate) struct Loader {
    engine: Engine,
    allow_p3: bool,
    components: Linker<Guest>,
    modules: wasmtime::Linker<Preview1Guest>,
}

impl Loader {
    pub fn new(engine: &Engine, allow_p3: bool) -> wasmtime::Result<Self> {
        Ok(Self {
            engine: engine.clone(),
            allow_p3,
            components: guest::linker(engine, allow_p3)?,
            modules: guest::preview1_linker(engine)?,
        })
    }

    /// Loads the machine code at `path`, which the agent described as `artifact`.
    pub fn load(&self, path: &Path, artifact: &Artifact) -> Result<Program, StartError> {
        if artifact.kind.is_p3() && !self.allow_p3 {
            return Err(refused(
                "the component is of WASI 0.3, which this node does not offer (see its --allow-p3)",
            ));
        }
        check(path, artifact)
            .map_err(|message| StartError { reason: ARTIFACT_DAMAGED.into(), message })?;
        let broken = |error: wasmtime::Error| StartError {
            reason: ARTIFACT_DAMAGED.into(),
            message: format!("{error:#}"),
        };
        if artifact.kind == Kind::Preview1 {
            // SAFETY: as for the component below.
            let module = unsafe { Module::deserialize_file(&self.engine, path) }.map_err(broken)?;
            let missing =
                module.imports().find(|import| import.module() != "wasi_snapshot_preview1");
            let linked = self.modules.instantiate_pre(&module);
            return match (linked, missing) {
                (Ok(linked), _) => Ok(Program::Preview1(Box::new(linked))),
                (Err(_), Some(import)) => Err(refused(&format!(
                    "imports {}::{} which this node does not offer",
                    import.module(),
                    import.name()
                ))),
                (Err(error), None) => {
                    Err(refused(&format!("its imports do not fit this node: {error:#}")))
                }
            };
        }
        // SAFETY: the file was written by `wasm-compile` of this node, in a directory that only the
        // agent's user can write, for an engine of this configuration (the cache's key has its
        // hash, and wasmtime checks it again); its checksum was just compared. It is never changed
        // in place: the cache renames new files over old ones, so the mapping stays as it is.
        let component =
            unsafe { Component::deserialize_file(&self.engine, path) }.map_err(broken)?;
        let linked = self.components.instantiate_pre(&component).map_err(|error| {
            let ty = component.component_type();
            let missing =
                ty.imports(&self.engine).find(|(name, _)| !guest::is_offered(name, self.allow_p3));
            match missing {
                Some((name, _)) => {
                    refused(&format!("imports {name} which this node does not offer"))
                }
                None => refused(&format!("its imports do not fit this node: {error:#}")),
            }
        })?;
        let program = match artifact.kind {
            Kind::Handler => ProxyPre::new(linked).map(Program::Handler),
            Kind::HandlerP3 => ServicePre::new(linked).map(Program::HandlerP3),
            Kind::Command => CommandPre::new(linked).map(Program::Command),
            Kind::CommandP3 => CommandP3Pre::new(linked).map(Program::CommandP3),
            Kind::Preview1 => unreachable!("a module was returned above"),
        };
        program.map_err(|error| refused(&format!("its exports do not fit WASI: {error:#}")))
    }
}

/// Compares length and checksum.
fn check(path: &Path, artifact: &Artifact) -> Result<(), String> {
    let code =
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let whole = code.len() as u64 == artifact.bytes && crc32fast::hash(&code) == artifact.crc32;
    whole.then_some(()).ok_or_else(|| format!("{} is damaged", path.display()))
}

fn refused(message: &str) -> StartError {
    StartError { reason: "CreateContainerError".into(), message: message.to_owned() }
}
