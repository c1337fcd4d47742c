//! Short names for contents: how Kubernetes' controllers call what they derive from a template.

/// FNV-1 of 32 bits. <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>
pub fn fnv1<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    let step = |hash: u32, byte: &u8| hash.wrapping_mul(PRIME) ^ u32::from(*byte);
    bytes.into_iter().fold(BASIS, step)
}

/// FNV-1a of 32 bits.
pub fn fnv1a<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(PRIME);
    bytes.into_iter().fold(BASIS, step)
}

const BASIS: u32 = 0x811c_9dc5;
const PRIME: u32 = 0x0100_0193;

/// Written without letters that make words (`SafeEncodeString` of k8s.io/apimachinery/pkg/util/rand).
pub fn readable(hash: u32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_published() {
        assert_eq!((fnv1(b""), fnv1a(b"")), (BASIS, BASIS));
        assert_eq!((fnv1(b"foobar"), fnv1a(b"foobar")), (0x31f0_b262, 0xbf9c_f968));
        assert_eq!(readable(1_234_567_890), "56789bcdf4");
        assert_eq!(readable(0), "4");
    }
}
