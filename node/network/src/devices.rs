//! What went over the network devices of this process's namespace.

use rimward_node_pod::outside::Traffic;

/// By name, in the kernel's order. The files in `/proc` are of the namespace that one is in, those in `/sys` of
/// where that was mounted.
pub fn devices() -> Vec<(String, Traffic)> {
    parse(&std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
}

/// `eth0: RX-BYTES PACKETS ERRORS DROPPED FIFO FRAME COMPRESSED MULTICAST TX-BYTES …`, below two lines of headings.
fn parse(text: &str) -> Vec<(String, Traffic)> {
    let one = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = counts[..]
        else {
            return None;
        };
        let traffic = Traffic {
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        };
        Some((name.trim().to_owned(), traffic))
    };
    text.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_devices() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  eth0:10 20 0 0 0 0 0 0 50 60 0 0 0 0 0 0\nbroken: 1\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        let lo = Traffic {
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        };
        assert_eq!(found[0], ("lo".into(), lo));
        assert_eq!((found[1].1.rx_bytes, found[1].1.tx_packets), (10, 60));
    }
}
