//! `wasi:sockets/ip-name-lookup`: names resolve as the pod's DNS policy says.

use std::net::IpAddr;
use std::pin::Pin;

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types as p3_types};

use crate::host::guest::Guest;
use crate::host::resolver::LookupError;

/// The version that wasmtime-wasi's own interfaces have; a component may ask for any 0.2 up to it.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";
const INTERFACE_P3: &str = "wasi:sockets/ip-name-lookup@0.3.0";

type Answer = Result<Vec<IpAddr>, LookupError>;

/// Behind `resolve-address-stream`.
struct Lookup {
    pending: Option<tokio::task::JoinHandle<Answer>>,
    answer: Result<std::vec::IntoIter<IpAddr>, ErrorCode>,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Some(task) = &self.pending {
            task.abort();
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Some(task) = &mut self.pending {
            let answer = task.await.unwrap_or(Err(LookupError::Failed));
            self.pending = None;
            self.answer = answer.map(Vec::into_iter).map_err(code);
        }
    }
}

fn code(error: LookupError) -> ErrorCode {
    match error {
        LookupError::NotFound => ErrorCode::NameUnresolvable,
        LookupError::Invalid => ErrorCode::InvalidArgument,
        LookupError::TimedOut => ErrorCode::TemporaryResolverFailure,
        LookupError::Failed => ErrorCode::PermanentResolverFailure,
    }
}

pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource(
        "resolve-address-stream",
        ResourceType::host::<Lookup>(),
        |mut store, rep| {
            store.data_mut().table.delete(Resource::<Lookup>::new_own(rep))?;
            Ok(())
        },
    )?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store: StoreContextMut<'_, Guest>, (_network, name): (Resource<Network>, String)| {
            let container = store.data().container().clone();
            let task = tokio::spawn(async move {
                container.resolver.lookup(&container.dns, &container.hosts, &name).await
            });
            let lookup = Lookup { pending: Some(task), answer: Ok(Vec::new().into_iter()) };
            Ok((Ok::<_, ErrorCode>(store.data_mut().table.push(lookup)?),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, Guest>, (stream,): (Resource<Lookup>,)| {
            let lookup = store.data_mut().table.get_mut(&stream)?;
            let next: Result<Option<IpAddress>, ErrorCode> =
                match (&lookup.pending, &mut lookup.answer) {
                    (Some(_), _) => Err(ErrorCode::WouldBlock),
                    (None, Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
                    (None, Err(code)) => Err(*code),
                };
            Ok((next,))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, Guest>, (stream,): (Resource<Lookup>,)| {
            let pollable: Resource<DynPollable> = subscribe(&mut store.data_mut().table, stream)?;
            Ok((pollable,))
        },
    )
}

pub(crate) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE_P3)?;
    interface.func_wrap_concurrent(
        "resolve-addresses",
        |accessor: &Accessor<Guest>, (name,): (String,)| {
            let container = accessor.with(|mut store| store.get().container().clone());
            let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
                let answer =
                    container.resolver.lookup(&container.dns, &container.hosts, &name).await;
                let addresses = answer.map(|list| {
                    list.into_iter().map(p3_types::IpAddress::from).collect::<Vec<_>>()
                });
                Ok((addresses.map_err(|error| match error {
                    LookupError::NotFound => p3::ErrorCode::NameUnresolvable,
                    LookupError::Invalid => p3::ErrorCode::InvalidArgument,
                    LookupError::TimedOut => p3::ErrorCode::TemporaryResolverFailure,
                    LookupError::Failed => p3::ErrorCode::PermanentResolverFailure,
                }),))
            });
            answer
        },
    )
}
