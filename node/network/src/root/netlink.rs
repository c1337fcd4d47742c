//! What each pod needs of the kernel's network, said to the kernel itself.
//!
//! A program for each step (`ip`) costs more than the rest of a container's start. So the steps of one pod go
//! as one message; what a node makes once is left to the program, whose words an operator can repeat. Only the
//! few requests that pods need are here. <https://www.rfc-editor.org/rfc/rfc3549>, rtnetlink(7).

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// linux/veth.h
const VETH_INFO_PEER: u16 = 1;
/// linux/if_link.h: attributes within IFLA_LINKINFO.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// More than any answer here takes.
const ANSWER_BYTES_MAX: usize = 32 << 10;
const HEADER_BYTES: usize = size_of::<libc::nlmsghdr>();

/// One thing to be done, and how it is called when it cannot be.
#[derive(Debug)]
pub(super) struct Request {
    pub what: String,
    kind: u16,
    flags: i32,
    /// What follows the header.
    body: Vec<u8>,
}

/// A conversation with the kernel about one network namespace: the one in which it was opened.
pub(super) struct Socket(OwnedFd);

#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses to {what}: {source}")]
pub(super) struct Refused {
    pub what: String,
    pub source: io::Error,
}

impl Refused {
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

impl Socket {
    /// In the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        // Of netlink's protocols the first, NETLINK_ROUTE, is meant where none is named.
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// All of it, in order, in one message. What comes after a request that is refused is tried all the same.
    ///
    /// # Errors
    /// The first refusal.
    pub fn ask(&self, requests: &[Request]) -> Result<(), Refused> {
        let mut message = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            request.put(&mut message, number as u32 + 1, libc::NLM_F_ACK);
        }
        let broken = |source| Refused { what: "take requests".into(), source };
        rustix::net::send(&self.0, &message, SendFlags::empty()).map_err(|e| broken(e.into()))?;
        let mut first = None;
        let mut missing = requests.len();
        while missing > 0 {
            for answer in self.answers().map_err(broken)? {
                let Answer::Done { number, errno } = answer else { continue };
                let Some(request) = requests.get((number as usize).wrapping_sub(1)) else {
                    continue;
                };
                missing -= 1;
                if errno != 0 && first.is_none() {
                    let source = io::Error::from_raw_os_error(errno);
                    first = Some(Refused { what: request.what.clone(), source });
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// A device's number.
    pub fn index(&self, device: &str) -> Result<u32, Refused> {
        let refused = |source| Refused { what: format!("tell of {device}"), source };
        let mut body = interface(0, 0, 0);
        put_text(&mut body, libc::IFLA_IFNAME, device);
        let request = Request { what: String::new(), kind: libc::RTM_GETLINK, flags: 0, body };
        let mut message = Vec::new();
        request.put(&mut message, 1, 0);
        let sent = rustix::net::send(&self.0, &message, SendFlags::empty());
        sent.map_err(|e| refused(e.into()))?;
        loop {
            for answer in self.answers().map_err(refused)? {
                match answer {
                    Answer::Link { index } => return Ok(index),
                    Answer::Done { errno, .. } => {
                        return Err(refused(io::Error::from_raw_os_error(errno)));
                    }
                    Answer::Other => {}
                }
            }
        }
    }

    fn answers(&self) -> io::Result<Vec<Answer>> {
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        let (_, len) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
        Ok(answers(&buffer[..len.min(ANSWER_BYTES_MAX)]))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// To the request of that number; 0 is well.
    Done {
        number: u32,
        errno: i32,
    },
    Link {
        index: u32,
    },
    Other,
}

fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(HEADER_BYTES) {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let (len, kind, number) = (word(0) as usize, word(4) as u16, word(8));
        let Some(body) = bytes.get(HEADER_BYTES..len) else { break };
        let signed = |at: usize| Some(i32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
        found.push(match (i32::from(kind), kind) {
            (libc::NLMSG_ERROR, _) => {
                Answer::Done { number, errno: -signed(0).unwrap_or(-libc::EPROTO) }
            }
            // struct ifinfomsg: its second word.
            (_, libc::RTM_NEWLINK) => Answer::Link { index: signed(4).unwrap_or(0) as u32 },
            _ => Answer::Other,
        });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

impl Request {
    fn put(&self, message: &mut Vec<u8>, number: u32, more: i32) {
        let len = (HEADER_BYTES + self.body.len()) as u32;
        let flags = (libc::NLM_F_REQUEST | self.flags | more) as u16;
        message.extend_from_slice(&len.to_ne_bytes());
        message.extend_from_slice(&self.kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&number.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(&self.body);
        message.resize(message.len().next_multiple_of(4), 0);
    }

    /// A pair of devices: `name` here, `peer` in another namespace.
    pub fn add_veth(name: &str, peer: &str, peer_namespace: impl AsFd) -> Self {
        let mut body = interface(0, 0, 0);
        put_text(&mut body, libc::IFLA_IFNAME, name);
        nest(&mut body, libc::IFLA_LINKINFO, |info| {
            put(info, IFLA_INFO_KIND, b"veth");
            nest(info, IFLA_INFO_DATA, |data| {
                nest(data, VETH_INFO_PEER, |other| {
                    other.extend_from_slice(&interface(0, 0, 0));
                    put_text(other, libc::IFLA_IFNAME, peer);
                    let fd = peer_namespace.as_fd().as_raw_fd();
                    put(other, libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
                });
            });
        });
        Self {
            what: format!("add the devices {name} and {peer}"),
            kind: libc::RTM_NEWLINK,
            flags: libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            body,
        }
    }

    pub fn link_up(device: &str) -> Self {
        let up = libc::IFF_UP as u32;
        let mut body = interface(0, up, up);
        put_text(&mut body, libc::IFLA_IFNAME, device);
        Self { what: format!("set {device} up"), kind: libc::RTM_NEWLINK, flags: 0, body }
    }

    pub fn delete_link(device: &str) -> Self {
        let mut body = interface(0, 0, 0);
        put_text(&mut body, libc::IFLA_IFNAME, device);
        Self { what: format!("delete {device}"), kind: libc::RTM_DELLINK, flags: 0, body }
    }

    /// An address without a network.
    pub fn replace_address(device: u32, address: Ipv4Addr) -> Self {
        let bytes = address.octets();
        // struct ifaddrmsg
        let mut body = vec![libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_UNIVERSE];
        body.extend_from_slice(&device.to_ne_bytes());
        put(&mut body, libc::IFA_LOCAL, &bytes);
        put(&mut body, libc::IFA_ADDRESS, &bytes);
        Self {
            what: format!("give the address {address}"),
            kind: libc::RTM_NEWADDR,
            flags: libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            body,
        }
    }

    pub fn replace_route(route: &Route) -> Self {
        Self {
            what: format!("add the route {route:?}"),
            kind: libc::RTM_NEWROUTE,
            flags: libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            body: route.body(libc::RTPROT_BOOT),
        }
    }

    pub fn delete_route(route: &Route) -> Self {
        Self {
            what: format!("delete the route {route:?}"),
            kind: libc::RTM_DELROUTE,
            flags: 0,
            body: route.body(libc::RTPROT_UNSPEC),
        }
    }
}

/// To one address (or all: 0.0.0.0) by a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub to: Ipv4Addr,
    pub device: u32,
    pub via: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
    /// RT_TABLE_MAIN, RT_TABLE_LOCAL
    pub table: u8,
}

impl Route {
    fn body(&self, protocol: u8) -> Vec<u8> {
        let len = if self.to.is_unspecified() { 0 } else { 32 };
        let scope = if self.via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        // struct rtmsg
        let mut body = vec![libc::AF_INET as u8, len, 0, 0];
        body.extend_from_slice(&[self.table, protocol, scope, libc::RTN_UNICAST]);
        body.extend_from_slice(&0_u32.to_ne_bytes());
        if len > 0 {
            put(&mut body, libc::RTA_DST, &self.to.octets());
        }
        put(&mut body, libc::RTA_OIF, &self.device.to_ne_bytes());
        for (kind, address) in [(libc::RTA_GATEWAY, self.via), (libc::RTA_PREFSRC, self.source)] {
            if let Some(address) = address {
                put(&mut body, kind, &address.octets());
            }
        }
        body
    }
}

/// struct ifinfomsg
fn interface(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, flags, change] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nest(body, kind, |body| body.extend_from_slice(value));
}

fn put_text(body: &mut Vec<u8>, kind: u16, text: &str) {
    put(body, kind, &[text.as_bytes(), &[0]].concat());
}

/// struct rtattr, around whatever is put in.
fn nest(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = body.len();
    body.extend_from_slice(&0_u16.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    fill(body);
    let len = (body.len() - start) as u16;
    body[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Does something in a namespace, by a thread that enters it and ends.
pub(super) fn within<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let file = std::fs::File::open(namespace)?;
    in_a_thread(move || {
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })
}

/// Makes a namespace, names it by a file, as `ip netns add` does, and does something in it.
pub(super) fn within_new<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let path = namespace.to_owned();
    in_a_thread(move || {
        // SAFETY: a network namespace is about neither memory nor descriptors; only this thread is moved.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        name(Path::new("/proc/thread-self/ns/net"), &path)?;
        work()
    })
}

/// Gives a namespace that was made a name.
pub(super) fn name(made: &Path, namespace: &Path) -> io::Result<()> {
    std::fs::File::options().write(true).create_new(true).open(namespace)?;
    rustix::mount::mount_bind(made, namespace).map_err(|error| {
        let _it_names_nothing = std::fs::remove_file(namespace);
        error.into()
    })
}

/// Takes a namespace's name away: it goes when nothing is in it any more.
pub(super) fn forget(namespace: &Path) -> io::Result<()> {
    let path = CString::new(namespace.as_os_str().as_encoded_bytes())?;
    match rustix::mount::unmount(path.as_c_str(), rustix::mount::UnmountFlags::DETACH) {
        // A name that was never mounted on.
        Ok(()) | Err(rustix::io::Errno::INVAL) => std::fs::remove_file(namespace),
        Err(error) => Err(error.into()),
    }
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers() {
        let mut message = Vec::new();
        Request::link_up("lo").put(&mut message, 7, libc::NLM_F_ACK);
        assert_eq!(message.len(), 16 + 16 + 8);
        assert_eq!(message[..4], 40_u32.to_ne_bytes());
        assert_eq!(message[32..39], [7, 0, 3, 0, b'l', b'o', 0], "a name ends with a NUL");

        let error = |errno: i32| {
            let mut message = Vec::new();
            let (kind, body) = (libc::NLMSG_ERROR as u16, (-errno).to_ne_bytes().to_vec());
            Request { what: String::new(), kind, flags: 0, body }.put(&mut message, 2, 0);
            message
        };
        let two = [error(0), error(libc::EEXIST)].concat();
        let done = |errno| Answer::Done { number: 2, errno };
        assert_eq!(answers(&two), [done(0), done(libc::EEXIST)]);
        for len in 0..two.len() {
            assert!(answers(&two[..len]).len() < 2, "what is cut off is not read");
        }
    }

    #[test]
    fn a_namespace_is_made_filled_and_forgotten() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED: it needs root (network namespaces)");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("one"), dir.path().join("other"));
        within_new(&other, || Ok(())).expect("a second namespace");
        let address = Ipv4Addr::new(10, 1, 2, 3);
        let gateway = Ipv4Addr::new(10, 9, 9, 9);
        let there = std::fs::File::open(&other).expect("it is there");
        let said = |e: Refused| io::Error::other(e.to_string());
        within_new(&path, || {
            let socket = Socket::open()?;
            let veth = Request::add_veth("eth0", "theirs", &there);
            socket.ask(&[Request::link_up("lo"), veth]).map_err(said)?;
            let device = socket.index("eth0").map_err(said)?;
            let direct =
                Route { to: gateway, device, via: None, source: None, table: libc::RT_TABLE_MAIN };
            let all = Route { to: Ipv4Addr::UNSPECIFIED, via: Some(gateway), ..direct };
            let requests = [
                Request::replace_address(device, address),
                Request::link_up("eth0"),
                Request::replace_route(&direct),
                Request::replace_route(&all),
            ];
            socket.ask(&requests).map_err(said)?;
            socket.ask(&requests).map_err(said)?;
            socket.ask(&[Request::delete_route(&all)]).map_err(said)?;
            let again = socket.ask(&[Request::delete_route(&all)]).expect_err("it is gone");
            assert!(again.is(libc::ESRCH), "{again}");
            let none = socket.index("eth7").expect_err("there is no such device");
            assert!(none.is(libc::ENODEV), "{none}");
            Ok(())
        })
        .expect("all is made");
        assert!(within_new(&path, || Ok(())).is_err(), "it is there already");
        within(&other, || Socket::open()?.index("theirs").map_err(said)).expect("the other end");
        forget(&path).expect("it goes");
        forget(&other).expect("it goes");
        assert!(!path.exists() && !other.exists());
    }
}
